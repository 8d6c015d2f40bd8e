// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Processes: what runs under a process id, and when that changes.

static __always_inline void start_process_record(struct process_record *record, u8 step, u32 tgid)
{
    __builtin_memset(record, 0, sizeof(*record));
    record->header.kind = RECORD_PROCESS;
    record->header.detail = step;
    record->header.tgid = tgid;
    record->header.timestamp_ns = bpf_ktime_get_ns();
}

struct executed_record {
    struct process_record record;
    char executable[EXECUTABLE_BYTES];
};

// sched:sched_process_exec (struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)
int on_execute(struct bpf_raw_tracepoint_args *ctx)
{
    u32 zero = 0;
    const void *name = NULL;
    struct scratch *scratch = scratches.lookup(&zero);
    if (!scratch)
        return 0;
    struct executed_record *executed = (struct executed_record *)scratch;
    u32 tgid = bpf_get_current_pid_tgid() >> 32;
    haproxies.delete(&tgid);
    start_process_record(&executed->record, PROCESS_EXECUTED, tgid);
    READ_FIELD(name, (const void *)ctx->args[2], OFF_BPRM_FILENAME);
    long length = bpf_probe_read_kernel_str(executed->executable, EXECUTABLE_BYTES, name);
    if (length < 1)
        length = 1;
    length -= 1; // without the final zero
    asm volatile("" : "+r"(length));
    if (length < 0 || length >= EXECUTABLE_BYTES)
        return 0;
    if (records.ringbuf_output(executed, sizeof(struct process_record) + length,
                               BPF_RB_NO_WAKEUP) != 0)
        count_lost(LOST_RING_FULL);
    return 0;
}

// sched:sched_process_fork (struct task_struct *parent, struct task_struct *child)
int on_fork(struct bpf_raw_tracepoint_args *ctx)
{
    struct process_record record;
    const void *child = (const void *)ctx->args[1];
    u32 pid = 0, tgid = 0;
    READ_FIELD(pid, child, OFF_TASK_PID);
    READ_FIELD(tgid, child, OFF_TASK_TGID);
    if (pid != tgid)
        return 0; // a thread
    start_process_record(&record, PROCESS_FORKED, tgid);
    record.parent_tgid = bpf_get_current_pid_tgid() >> 32;
    u32 layout = layout_of(record.parent_tgid);
    if (layout != NO_LAYOUT)
        haproxies.update(&tgid, &layout);
    if (records.ringbuf_output(&record, sizeof(record), BPF_RB_NO_WAKEUP) != 0)
        count_lost(LOST_RING_FULL);
    return 0;
}

// sched:sched_process_exit (struct task_struct *p)
int on_exit(struct bpf_raw_tracepoint_args *ctx)
{
    struct process_record record;
    u64 pid_tgid = bpf_get_current_pid_tgid();
    u32 tgid = pid_tgid >> 32;
    if ((u32)pid_tgid != tgid)
        return 0;
    haproxies.delete(&tgid);
    start_process_record(&record, PROCESS_EXITED, tgid);
    if (records.ringbuf_output(&record, sizeof(record), BPF_RB_NO_WAKEUP) != 0)
        count_lost(LOST_RING_FULL);
    return 0;
}
