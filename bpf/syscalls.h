// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Rung 2 (kernel 5.10 and later): the tracepoints at entry and exit of each system call
// that moves bytes. The socket is found at entry from the file descriptor, so that a
// descriptor closed and used again meanwhile cannot be taken for another connection.

struct call {
    u64 sk;
    struct source source;
    u8 flow;
    u8 peek;
};

// Key: thread. Entered at the entry of a call on a TCP socket, removed at its exit; a
// thread that dies in between leaves an entry that its successor overwrites.
BPF_HASH(calls, u32, struct call, 16384);

struct sys_exit_arguments {
    u64 common;
    int number;
    int padding;
    long result;
};

#define S_IFMT 0170000
#define S_IFSOCK 0140000

// The struct sock behind a file descriptor of the current process, or NULL.
static __always_inline const void *sock_of(u64 descriptor)
{
    void *pointer = (void *)bpf_get_current_task();
    u32 limit = 0;
    u16 mode = 0;
    void *file = NULL;
    void *inode = NULL;
    READ_FIELD(pointer, pointer, OFF_TASK_FILES);
    READ_FIELD(pointer, pointer, OFF_FILES_FDT);
    READ_FIELD(limit, pointer, OFF_FDT_MAX_FDS);
    if ((u32)descriptor >= limit)
        return NULL;
    READ_FIELD(pointer, pointer, OFF_FDT_FD);
    READ_FIELD(file, pointer, (u64)(u32)descriptor * 8);
    if (!file)
        return NULL;
    READ_FIELD(inode, file, OFF_FILE_INODE);
    READ_FIELD(mode, inode, OFF_INODE_MODE);
    if ((mode & S_IFMT) != S_IFSOCK)
        return NULL;
    READ_FIELD(pointer, file, OFF_FILE_PRIVATE_DATA);
    READ_FIELD(pointer, pointer, OFF_SOCKET_SK);
    return pointer;
}

// The line of a log is taken before it is written: it may not even get that far.
static __always_inline void take_line(const struct source *source)
{
    struct settings *settings = get_settings();
    if (settings && may_be_line(source))
        hand_over_line(settings, source);
}

static __always_inline int enter_syscall(struct sys_enter_arguments *ctx, u64 receive_flags)
{
    struct call call;
    struct sock_start start;
    u64 descriptor = ctx->arguments[0];
    u32 thread = bpf_get_current_pid_tgid();
    u64 header = 0;

    __builtin_memset(&call, 0, sizeof(call));
    call.source.base = ctx->arguments[1];
    call.source.readable = 1;
    switch (ctx->number) {
    case NR_WRITE:
    case NR_SENDTO:
        call.flow = FLOW_SEND;
        break;
    case NR_READ:
        call.flow = FLOW_RECEIVE;
        break;
    case NR_RECVFROM:
        call.flow = FLOW_RECEIVE;
        break;
    case NR_SENDMSG:
        call.flow = FLOW_SEND;
        header = ctx->arguments[1];
        break;
    case NR_RECVMSG:
        call.flow = FLOW_RECEIVE;
        header = ctx->arguments[1];
        receive_flags = ctx->arguments[2];
        break;
    case NR_WRITEV:
        call.flow = FLOW_SEND;
        call.source.segments = ctx->arguments[2];
        break;
    case NR_READV:
        call.flow = FLOW_RECEIVE;
        call.source.segments = ctx->arguments[2];
        break;
    case NR_SENDFILE: // out_fd, in_fd, offset, count
        call.flow = FLOW_SEND;
        call.source.readable = 0;
        break;
    case NR_SPLICE: // fd_in, off_in, fd_out, off_out, length, flags: one of them is a pipe
        call.flow = FLOW_RECEIVE;
        call.source.readable = 0;
        break;
    default:
        return 0;
    }
    const void *sk = sock_of(descriptor);
    if (!sk && ctx->number == NR_SPLICE) {
        call.flow = FLOW_SEND;
        sk = sock_of(ctx->arguments[2]);
    }
    if (!sk) {
        if (ctx->number == NR_WRITEV && is_standard_output(descriptor))
            take_line(&call.source);
        return 0;
    }
    read_sock_start(&start, sk);
    if (header)
        read_message_header(&call.source, header);
    if (!is_tcp(sk, &start)) {
        if (call.flow == FLOW_SEND)
            take_line(&call.source);
        return 0;
    }
    call.sk = (u64)sk;
    call.peek = (receive_flags & MSG_PEEK) != 0;
    calls.update(&thread, &call);
    return 0;
}

// The kernel refuses a program that looks at more arguments than a tracepoint has, and
// most calls have three. So the fourth of recvfrom needs a program of its own.
int on_syscall_enter(struct sys_enter_arguments *ctx)
{
    return enter_syscall(ctx, 0);
}

int on_recvfrom_enter(struct sys_enter_arguments *ctx)
{
    return enter_syscall(ctx, ctx->arguments[3]);
}

int on_syscall_exit(struct sys_exit_arguments *ctx)
{
    u32 thread = bpf_get_current_pid_tgid();
    struct call *found = calls.lookup(&thread);
    if (!found)
        return 0;
    struct call call = *found;
    calls.delete(&thread);
    if (call.peek)
        return 0;
    if (is_idle_result(ctx->result)) {
        if (call.flow == FLOW_RECEIVE && ctx->result == -EAGAIN)
            note_reader(call.sk);
        return 0;
    }
    struct settings *settings = get_settings();
    if (!settings)
        return 0;
    struct connection *c = connections.lookup(&call.sk);
    if (c && is_passed_over(c, settings))
        return 0;
    if (c && is_followed(c, settings) &&
        try_quickly(c, settings, call.flow, ctx->result, &call.source))
        return 0;
    on_transfer((const void *)call.sk, c, settings, call.flow, ctx->result, &call.source);
    return 0;
}
