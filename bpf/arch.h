// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Everything that depends on the architecture, and nothing else.

struct syscall_arguments {
    long number;
    u64 first; // usually a file descriptor
    u64 second;
    u64 third;
};

#if defined(__x86_64__)

#define NR_READ 0
#define NR_WRITE 1
#define NR_READV 19
#define NR_WRITEV 20
#define NR_SENDFILE 40
#define NR_SENDTO 44
#define NR_RECVFROM 45
#define NR_SENDMSG 46
#define NR_RECVMSG 47
#define NR_SPLICE 275
#define NR_PREADV2 327
#define NR_PWRITEV2 328

// The registers of the system call that the current task is in. They lie next to each
// other in pt_regs (dx, si, di, orig_ax), so one read brings all four.
static __always_inline void read_syscall_arguments(struct syscall_arguments *out)
{
    u64 words[4] = {};
    struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());
    bpf_probe_read_kernel(words, sizeof(words), (char *)regs + 96);
    out->third = words[0];
    out->second = words[1];
    out->first = words[2];
    out->number = words[3];
}

#elif defined(__aarch64__)

#define NR_READ 63
#define NR_WRITE 64
#define NR_READV 65
#define NR_WRITEV 66
#define NR_SENDFILE 71
#define NR_SPLICE 76
#define NR_SENDTO 206
#define NR_RECVFROM 207
#define NR_SENDMSG 211
#define NR_RECVMSG 212
#define NR_PREADV2 286
#define NR_PWRITEV2 287

// x0 holds the first argument until the call returns; x8 the number. Untried so far.
static __always_inline void read_syscall_arguments(struct syscall_arguments *out)
{
    u64 words[9] = {};
    struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());
    bpf_probe_read_kernel(words, sizeof(words), regs);
    out->first = words[0];
    out->second = words[1];
    out->third = words[2];
    out->number = words[8];
}

#else
#error "only x86-64 and arm64 are supported"
#endif
