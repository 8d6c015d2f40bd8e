// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Stand-in: the registers that a system call was entered with, as the kernel saves
// them. x86-64: arch/x86/include/asm/ptrace.h; arm64: arch/arm64/include/asm/ptrace.h.
#ifndef OTEL_QTAP_PTRACE_H
#define OTEL_QTAP_PTRACE_H

#if defined(__x86_64__) || defined(__TARGET_ARCH_x86)
struct pt_regs {
    unsigned long r15, r14, r13, r12, bp, bx;
    unsigned long r11, r10, r9, r8;
    unsigned long ax, cx, dx, si, di;
    unsigned long orig_ax;
    unsigned long ip, cs, flags, sp, ss;
};
#else
struct user_pt_regs {
    unsigned long long regs[31];
    unsigned long long sp, pc, pstate;
};
struct pt_regs {
    unsigned long long regs[31];
    unsigned long long sp, pc, pstate;
};
#endif

#endif
