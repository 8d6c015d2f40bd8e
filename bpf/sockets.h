// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Rung 1 (kernel 6.3 and later): the tracepoints sock:sock_send_length and
// sock:sock_recv_length. They fire once for each call on any socket and give the
// socket itself; the buffer is found in the registers of the system call.

static __always_inline void locate(struct source *source)
{
    struct syscall_arguments arguments;
    read_syscall_arguments(&arguments);
    source->base = arguments.second;
    source->segments = 0;
    source->readable = 1;
    switch (arguments.number) {
    case NR_SENDTO:
    case NR_RECVFROM:
    case NR_READ:
    case NR_WRITE:
        break;
    case NR_SENDMSG:
    case NR_RECVMSG:
        read_message_header(source, arguments.second);
        break;
    case NR_READV:
    case NR_WRITEV:
    case NR_PREADV2:
    case NR_PWRITEV2:
        source->segments = arguments.third;
        break;
    default: // sendfile, splice, sendmmsg, io_uring, …: the length is all there is
        source->readable = 0;
    }
}

// The log's socket was full, and HAProxy drops the line; what it says is true all the same.
static __always_inline void take_refused_line(void)
{
    struct source source;
    struct settings *settings = get_settings();
    if (!settings || layout_of(bpf_get_current_pid_tgid() >> 32) == NO_LAYOUT)
        return;
    locate(&source);
    if (may_be_line(&source))
        hand_over_line(settings, &source);
}

static __always_inline void on_sock_length(struct bpf_raw_tracepoint_args *ctx, u8 flow)
{
    const void *sk = (const void *)ctx->args[0];
    int result = ctx->args[1];
    int flags = ctx->args[2];
    struct source source;
    if (is_idle_result(result)) {
        if (flow == FLOW_SEND && result == -EAGAIN)
            take_refused_line();
        else if (flow == FLOW_RECEIVE && result == -EAGAIN)
            note_reader(ctx->args[0]);
        return;
    }
    if (flow == FLOW_RECEIVE && (flags & MSG_PEEK))
        return;

    u64 key = (u64)sk;
    struct settings *settings = get_settings();
    if (!settings)
        return;
    struct connection *c = connections.lookup(&key);
    if (c && is_passed_over(c, settings))
        return;
    locate(&source);
    if (c && is_followed(c, settings) && try_quickly(c, settings, flow, result, &source))
        return;
    if (!c && flow == FLOW_SEND && may_be_line(&source) && hand_over_line(settings, &source))
        return;
    on_transfer(sk, c, settings, flow, result, &source);
}

int on_send(struct bpf_raw_tracepoint_args *ctx)
{
    on_sock_length(ctx, FLOW_SEND);
    return 0;
}

int on_receive(struct bpf_raw_tracepoint_args *ctx)
{
    on_sock_length(ctx, FLOW_RECEIVE);
    return 0;
}
