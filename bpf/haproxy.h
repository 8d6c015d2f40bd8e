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
    s32 snapshots; // still to be taken
    u32 padding;
};

// Key: number of the layout, from 1. Written by user space.
BPF_ARRAY(layouts, struct layout, LAYOUTS);

// Key: thread group id; value: its layout. Entered by user space, and here for a forked
// process; removed here when the process executes another program or ends.
BPF_HASH(haproxies, u32, u32, 4096);

// A call of process_stream.
struct stream_call {
    struct stream stream;
    u64 return_at;      // where on the stack the address to return to stands
    u64 return_address; // 0: a probe on the return ends the call
};

// Key: thread; value: the call it is in, SOURCE_PROBE only. Entered and removed by the
// probes; a thread that dies in between leaves an entry that its successor overwrites.
BPF_HASH(processing, u32, struct stream_call, 16384);

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
    out->task = task;
    if (call[0] != layout->process_stream) {
        out->state = STREAM_OTHER;
        return;
    }
    if (!call[1]) { // while HAProxy frees it, and with it the connection of its client
        out->state = STREAM_ENDING;
        return;
    }
    if (bpf_probe_read_user(&out->serial, 4, (const void *)(call[1] + layout->serial)) != 0)
        return;
    out->address = call[1];
    out->state = STREAM_KNOWN;
}

#define NEARBY 0x100000 // bytes of code around an instruction; the scheduler has 3 KB

// The stream of the call that the current thread is in, if it has not left it unnoticed.
static __always_inline void read_call(struct stream *out)
{
    u32 thread = bpf_get_current_pid_tgid();
    struct stream_call *found = processing.lookup(&thread);
    u64 returns_to = 0;
    out->state = STREAM_NONE;
    if (!found)
        return;
    if (found->return_address) {
        if (bpf_probe_read_user(&returns_to, 8, (const void *)found->return_at) != 0) {
            out->state = STREAM_UNREADABLE;
            return;
        }
        if (returns_to != found->return_address) {
            // Another function was called from there since; only what another tool's probe on
            // the return puts in its place is far away.
            if (returns_to - found->return_address + NEARBY > 2 * NEARBY)
                out->state = STREAM_UNREADABLE;
            return;
        }
    }
    *out = found->stream;
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
        read_call(out);
    }
}

static __always_inline void begin_call(struct stream_call *call, struct pt_regs *ctx)
{
    call->stream.address = PT_REGS_PARM2(ctx);
    call->stream.task = PT_REGS_PARM1(ctx);
    call->stream.state = STREAM_KNOWN;
    u64 key = stream_key(call->stream.address);
    u32 *freed = generations.lookup(&key);
    if (freed)
        call->stream.serial = *freed;
}

// process_stream(struct task *t, void *context, unsigned int state)
int on_process_stream(struct pt_regs *ctx)
{
    u32 thread = bpf_get_current_pid_tgid();
    struct stream_call call = {};
    begin_call(&call, ctx);
    processing.update(&thread, &call);
    return 0;
}

// Also where no probe is on the return: at a function that the thread calls afterwards.
int on_process_stream_return(struct pt_regs *ctx)
{
    u32 thread = bpf_get_current_pid_tgid();
    processing.delete(&thread);
    return 0;
}

#define CALL_BYTES 5 // of the x86-64 instruction `call rel32`: 0xe8, and the distance
#define PROBE_SHIFT 4 // a probe may stand behind `endbr64`

// process_stream where no probe may be on its return (x86-64). HAProxy's scheduler calls it
// by an instruction that calls nothing else, and all other tasks from the same frame. So
// the call is over as soon as something else stands where the address to return to was;
// when the scheduler itself has returned, and the frame is gone, HAProxy polls, and a probe
// there ends the call.
int on_process_stream_called(struct pt_regs *ctx)
{
    u32 thread = bpf_get_current_pid_tgid();
    struct stream_call call = {};
    u8 code[CALL_BYTES] = {};
    s32 distance = 0;
    u64 called = 0;
    begin_call(&call, ctx);
    call.return_at = PT_REGS_SP(ctx);
    bpf_probe_read_user(&call.return_address, 8, (const void *)call.return_at);
    bpf_probe_read_user(code, CALL_BYTES, (const void *)(call.return_address - CALL_BYTES));
    __builtin_memcpy(&distance, code + 1, 4);
    called = PT_REGS_IP(ctx) - (call.return_address + distance);
    if (code[0] != 0xe8 || (called != 0 && called != PROBE_SHIFT)) {
        // By a pointer, as anything else may be: nobody could tell when it is over.
        __builtin_memset(&call, 0, sizeof(call));
        call.stream.state = STREAM_UNREADABLE;
    }
    processing.update(&thread, &call);
    return 0;
}

// stream_free(struct stream *s)
int on_stream_free(struct pt_regs *ctx)
{
    u64 address = PT_REGS_PARM1(ctx);
    u64 key = stream_key(address);
    u32 thread = bpf_get_current_pid_tgid();
    u32 first = 1;
    u32 *freed = generations.lookup(&key);
    struct stream_call *call = processing.lookup(&thread);
    if (call && call->stream.address == address) {
        // What comes now is not for its client any more: perhaps for the next on its connection.
        call->stream.address = 0;
        call->stream.serial = 0;
        call->stream.state = STREAM_ENDING;
    }
    if (freed)
        *freed += 1;
    else
        generations.update(&key, &first);
    return 0;
}

// Two threads may see the same last one to be taken, and count below zero.
static __always_inline int wants_snapshot(const struct layout *layout)
{
    return layout && layout->snapshots > 0;
}

// Emit a snapshot of what the current thread is doing; a data record of the same
// connection and time follows it.
static __always_inline void send_snapshot(struct scratch *scratch, struct layout *layout,
                                          const struct connection *c, u8 detail, u32 tgid, u64 now)
{
    struct snapshot_record *record = (struct snapshot_record *)scratch->payload;
    u64 context = 0, task = 0, call[2] = {};

    layout->snapshots--;
    record->header.kind = RECORD_SNAPSHOT;
    record->header.detail = detail;
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
