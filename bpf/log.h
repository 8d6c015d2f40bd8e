// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// What HAProxy writes to its own log: its account of each request, beside ours.
//
// A line goes out in one call and in several pieces: one datagram (sendmsg over UDP or to
// a Unix socket) or one write (writev to stdout or stderr). Nobody tries a second time, so
// a line is taken whatever became of it.

#define LOG_BYTES 2048 // of a line; HAProxy cuts at 1,024 unless told otherwise ("len")

struct sys_enter_arguments {
    u64 common;
    int number; // not long: what fills it up to eight bytes is never set
    int padding;
    u64 arguments[6];
};

struct line_record {
    struct log_record record;
    char text[LOG_BYTES];
};

// Read the text of a line; returns how long it is. The pieces before it are its header
// (priority, date, host and so on), the one behind it is a newline.
static __always_inline u64 read_line(char *text, const struct source *source)
{
    struct user_iovec last[2] = {};
    u64 at = source->base + (source->segments - 2) * sizeof(struct user_iovec);
    if (bpf_probe_read_user(last, sizeof(last), (const void *)at) != 0) {
        count_lost(LOST_READ_FAULT);
        return 0;
    }
    u64 base = last[0].length > last[1].length ? last[0].base : last[1].base;
    u64 n = last[0].length > last[1].length ? last[0].length : last[1].length;
    if (n > LOG_BYTES)
        n = LOG_BYTES;
    asm volatile("" : "+r"(n)); // checked again for the verifier
    if (n > LOG_BYTES)
        return 0;
    if (bpf_probe_read_user(text, n, (const void *)base) != 0) {
        count_lost(LOST_READ_FAULT);
        return 0;
    }
    return n;
}

// Hand over what the current process writes, if it is a HAProxy; returns whether it is.
static __always_inline int hand_over_line(const struct settings *settings,
                                          const struct source *source)
{
    u32 zero = 0;
    u64 pid_tgid = bpf_get_current_pid_tgid();
    u32 tgid = pid_tgid >> 32;
    if (layout_of(tgid) == NO_LAYOUT)
        return 0;
    if (is_excluded(tgid) || !(settings->directions & WANT_INGRESS))
        return 1; // nobody wants to know about its clients
    struct scratch *scratch = scratches.lookup(&zero);
    if (!scratch)
        return 1;
    struct line_record *line = (struct line_record *)scratch;
    u64 length = read_line(line->text, source);
    if (length == 0)
        return 1;
    __builtin_memset(&line->record, 0, sizeof(line->record));
    line->record.header.kind = RECORD_LOG;
    line->record.header.tgid = tgid;
    line->record.header.timestamp_ns = bpf_ktime_get_ns();
    line->record.tid = pid_tgid;
    asm volatile("" : "+r"(length)); // checked again for the verifier
    if (length > LOG_BYTES)
        return 1;
    if (records.ringbuf_output(line, sizeof(struct log_record) + length, BPF_RB_NO_WAKEUP) != 0)
        count_lost(LOST_RING_FULL);
    return 1;
}

// Whether a call that sends may be about a line of a log: HAProxy makes all others out of
// one piece.
static __always_inline int may_be_line(const struct source *source)
{
    return source->readable && source->segments > 1;
}

#define STDOUT 1
#define STDERR 2

static __always_inline int is_standard_output(u64 descriptor)
{
    return (u32)descriptor == STDOUT || (u32)descriptor == STDERR;
}

#ifndef RUNG_SYSCALLS
// syscalls:sys_enter_writev, attached only while a HAProxy logs to its stdout or stderr:
// the tracepoint of one system call makes every system call of the machine slower.
int on_log_write(struct sys_enter_arguments *ctx)
{
    struct source source;
    struct settings *settings = get_settings();
    if (!settings || !is_standard_output(ctx->arguments[0]))
        return 0;
    source.base = ctx->arguments[1];
    source.segments = ctx->arguments[2];
    source.readable = 1;
    if (may_be_line(&source))
        hand_over_line(settings, &source);
    return 0;
}
#endif
