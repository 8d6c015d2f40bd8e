// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Which request a HAProxy thread was working on: the stream it was processing.
//
// HAProxy publishes the running task of each thread in `th_ctx->current`. When the
// function of that task is `process_stream`, its argument is the stream. So a few reads
// of HAProxy's own memory say on whose behalf bytes are sent or a connection is opened,
// without a probe. The agent finds where these things lie, and verifies it on snapshots
// that are taken here, on the thread itself, so that nothing can move meanwhile.

#define NO_LAYOUT 0
#define LAYOUTS 512

enum stream_source {
    SOURCE_NOTHING = 0,
    SOURCE_THREAD = 1, // read from the thread's context, as above
    SOURCE_PROBE = 2,  // told by uprobes on process_stream
};

// Where things lie in the memory of a process. Forked processes share their parent's.
struct layout {
    u64 process_stream; // address of the function
    u64 thread_context; // of the thread-local `th_ctx`, relative to the thread pointer
    u16 current;        // in struct thread_ctx: the running task
    u16 process;        // in struct task: its function; the argument follows it
    u16 serial;         // in struct stream: uniq_id
    u8 source;          // enum stream_source
    u8 reserved;
    u32 snapshots; // still to be taken
    u32 padding;
};

// Key: number of the layout, from 1. Written by user space.
BPF_ARRAY(layouts, struct layout, LAYOUTS);

// Key: thread group id; value: its layout. Entered by user space, and here for a forked
// process; removed here when the process executes another program or ends.
BPF_HASH(haproxies, u32, u32, 4096);

// Key: thread; value: the stream it is in, SOURCE_PROBE only. Entered and removed by the
// probes; a thread that dies in between leaves an entry that its successor overwrites.
BPF_HASH(processing, u32, struct stream, 16384);

// How often the stream at an address was freed, SOURCE_PROBE only: there it takes the
// place of HAProxy's own numbers. Key: address of the stream, mixed with its process.
// The oldest go.
BPF_TABLE("lru_hash", u64, u32, generations, 65536);

static __always_inline struct layout *get_layout(u32 number)
{
    if (number == NO_LAYOUT)
        return NULL;
    return layouts.lookup(&number);
}

static __always_inline u32 layout_of(u32 tgid)
{
    u32 *number = haproxies.lookup(&tgid);
    return number ? *number : NO_LAYOUT;
}

static __always_inline u64 stream_key(u64 address)
{
    return address ^ (bpf_get_current_pid_tgid() >> 32) << 48;
}

static __always_inline void read_running_task(struct stream *out, const struct layout *layout)
{
    u64 context = 0, task = 0, call[2] = {};
    out->state = STREAM_UNREADABLE;
    READ_FIELD(context, bpf_get_current_task(), OFF_TASK_THREAD_POINTER);
    if (bpf_probe_read_user(&context, 8, (const void *)(context + layout->thread_context)) != 0 ||
        bpf_probe_read_user(&task, 8, (const void *)(context + layout->current)) != 0)
        return;
    if (!task) {
        out->state = STREAM_NONE;
        return;
    }
    if (bpf_probe_read_user(call, 16, (const void *)(task + layout->process)) != 0)
        return;
    if (call[0] != layout->process_stream) {
        out->state = STREAM_OTHER;
        return;
    }
    out->task = task;
    if (!call[1]) { // while HAProxy frees it, and with it the connection of its client
        out->state = STREAM_ENDING;
        return;
    }
    if (bpf_probe_read_user(&out->serial, 4, (const void *)(call[1] + layout->serial)) != 0)
        return;
    out->address = call[1];
    out->state = STREAM_KNOWN;
}

// The stream that the current thread is processing.
static __always_inline void read_stream(struct stream *out, const struct layout *layout)
{
    out->address = 0;
    out->task = 0;
    out->serial = 0;
    out->state = STREAM_NOT_ASKED;
    if (!layout)
        return;
    if (layout->source == SOURCE_THREAD) {
        read_running_task(out, layout);
    } else if (layout->source == SOURCE_PROBE) {
        u32 thread = bpf_get_current_pid_tgid();
        struct stream *found = processing.lookup(&thread);
        out->state = STREAM_NONE;
        if (found)
            *out = *found;
    }
}

// process_stream(struct task *t, void *context, unsigned int state)
int on_process_stream(struct pt_regs *ctx)
{
    u32 thread = bpf_get_current_pid_tgid();
    struct stream stream = {};
    stream.address = PT_REGS_PARM2(ctx);
    stream.task = PT_REGS_PARM1(ctx);
    stream.state = STREAM_KNOWN;
    u64 key = stream_key(stream.address);
    u32 *freed = generations.lookup(&key);
    if (freed)
        stream.serial = *freed;
    processing.update(&thread, &stream);
    return 0;
}

int on_process_stream_return(struct pt_regs *ctx)
{
    u32 thread = bpf_get_current_pid_tgid();
    processing.delete(&thread);
    return 0;
}

// stream_free(struct stream *s)
int on_stream_free(struct pt_regs *ctx)
{
    u64 key = stream_key(PT_REGS_PARM1(ctx));
    u32 first = 1;
    u32 *freed = generations.lookup(&key);
    if (freed)
        *freed += 1;
    else
        generations.update(&key, &first);
    return 0;
}

// Emit a snapshot of what the current thread is doing; a data record of the same
// connection and time follows it.
static __always_inline void send_snapshot(struct scratch *scratch, struct layout *layout,
                                          const struct connection *c, u32 tgid, u64 now)
{
    struct snapshot_record *record = (struct snapshot_record *)scratch->payload;
    u64 context = 0, task = 0, call[2] = {};

    layout->snapshots--;
    record->header.kind = RECORD_SNAPSHOT;
    record->header.detail = FLOW_SEND;
    record->header.role = c->role;
    record->header.flags = 0;
    record->header.tgid = tgid;
    record->header.timestamp_ns = now;
    record->header.connection_id = c->id;
    READ_FIELD(context, bpf_get_current_task(), OFF_TASK_THREAD_POINTER);
    bpf_probe_read_user(&context, 8, (const void *)(context + layout->thread_context));
    record->context_address = context;
    // What cannot be read is zero then: the helper clears its destination.
    bpf_probe_read_user(record->context, sizeof(record->context), (const void *)context);
#pragma unroll
    for (int i = 0; i < SNAPSHOT_WORDS; i++)
        bpf_probe_read_user(record->targets[i], SNAPSHOT_TARGET, (const void *)record->context[i]);
    record->task = 0;
    record->stream_address = 0;
    if (bpf_probe_read_user(&task, 8, (const void *)(context + layout->current)) == 0 && task &&
        bpf_probe_read_user(call, 16, (const void *)(task + layout->process)) == 0 &&
        call[0] == layout->process_stream) {
        record->task = task;
        record->stream_address = call[1];
    }
    bpf_probe_read_user(record->stream, sizeof(record->stream), (const void *)call[1]);
    if (records.ringbuf_output(record, sizeof(*record), BPF_RB_NO_WAKEUP) != 0)
        count_lost(LOST_RING_FULL);
}
