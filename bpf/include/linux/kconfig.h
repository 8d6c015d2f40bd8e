// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Stand-in: all that bcc asks of a kernel's configuration.
#ifndef CONFIG_BPF_SYSCALL
#define CONFIG_BPF_SYSCALL 1
#endif
