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

static __always_inline void on_sock_length(struct bpf_raw_tracepoint_args *ctx, u8 flow)
{
    const void *sk = (const void *)ctx->args[0];
    int result = ctx->args[1];
    int flags = ctx->args[2];
    struct source source;
    if (is_idle_result(result) || (flow == FLOW_RECEIVE && (flags & MSG_PEEK)))
        return;
    locate(&source);
    on_transfer(sk, flow, result, &source);
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
