// Stand-in: all that bcc asks of a kernel's configuration.
#ifndef CONFIG_BPF_SYSCALL
#define CONFIG_BPF_SYSCALL 1
#endif
