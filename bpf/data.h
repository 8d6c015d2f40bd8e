// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Bytes on their way: decide whether the connection matters, copy what can be used,
// hand it over with the true length.

// Where the bytes of a call lie in the memory of the process.
struct source {
    u64 base;     // address of the bytes, or of an array of struct iovec
    u32 segments; // entries of that array; 0: `base` is the bytes themselves
    u8 readable;  // 0: the bytes did not pass through user memory
};

struct user_iovec {
    u64 base;
    u64 length;
};

// struct user_msghdr: msg_iov at 16, msg_iovlen at 24 on 64-bit (include/linux/socket.h).
static __always_inline void read_message_header(struct source *source, u64 address)
{
    u64 words[2] = {};
    if (bpf_probe_read_user(words, sizeof(words), (const void *)(address + 16)) != 0) {
        source->readable = 0;
        return;
    }
    source->base = words[0];
    source->segments = words[1];
}

// Up to PROBE_BYTES of the `length` bytes at `address`; returns how many were read.
static __always_inline u32 read_probe_at(struct probe *probe, u64 address, u64 length)
{
    probe->low = 0;
    probe->high = 0;
    if (length >= PROBE_BYTES)
        return bpf_probe_read_user(probe, PROBE_BYTES, (const void *)address) == 0 ? PROBE_BYTES
                                                                                   : 0;
    // No more than there is: a read past the end could fault where the call did not.
    length &= PROBE_BYTES - 1;
    asm volatile("" : "+r"(length));
    length &= PROBE_BYTES - 1;
    return bpf_probe_read_user(probe, length, (const void *)address) == 0 ? length : 0;
}

#define PROBE_SEGMENTS 4 // looked at until PROBE_BYTES are found

// The first bytes of the call, for protocol detection; returns how many were read.
static __always_inline u32 read_probe(struct probe *probe, const struct source *source, u64 size)
{
    u32 have = 0;
    probe->low = 0;
    probe->high = 0;
    if (!source->readable)
        return 0;
    if (!source->segments)
        return read_probe_at(probe, source->base, size);
#pragma unroll
    for (int i = 0; i < PROBE_SEGMENTS; i++) {
        struct user_iovec segment = {};
        struct probe more;
        if (have >= PROBE_BYTES || size == 0 || i >= source->segments)
            break;
        if (bpf_probe_read_user(&segment, sizeof(segment),
                                (const void *)(source->base + i * sizeof(segment))) != 0)
            break;
        if (segment.length > size)
            segment.length = size;
        size -= segment.length;
        u32 got = read_probe_at(&more, segment.base, segment.length);
        probe_append(probe, have, &more);
        have += got;
        if (got < PROBE_BYTES && got < segment.length)
            break; // what follows would not stand where it belongs
    }
    return have > PROBE_BYTES ? PROBE_BYTES : have;
}

#define PROBE_SEALED 0x80 // in probe_length: bytes that could not be read stand behind the known

// The first bytes of this call, behind those of the same flow that came before while
// the connection was undecided: they may come one at a time. Returns how many are known.
static __always_inline u32 gather_probe(struct probe *probe, struct connection *c, u8 flow,
                                        const struct source *source, u64 size)
{
    struct probe more;
    u32 got = read_probe(&more, source, size);
    if (c->phase != PHASE_FRESH) {
        *probe = more;
        return got;
    }
    u32 have = flow ? c->probe_length[1] : c->probe_length[0];
    *probe = flow ? c->probes[1] : c->probes[0];
    if (have & PROBE_SEALED)
        return have & ~PROBE_SEALED;
    probe_append(probe, have, &more);
    have += got;
    if (have > PROBE_BYTES)
        have = PROBE_BYTES;
    u8 length = have < PROBE_BYTES && got < size ? have | PROBE_SEALED : have;
    if (flow) {
        c->probes[1] = *probe;
        c->probe_length[1] = length;
    } else {
        c->probes[0] = *probe;
        c->probe_length[0] = length;
    }
    return have;
}

#define LATE_TURNS 64 // changes of direction without HTTP after which a late connection is dropped

static __always_inline u8 role_by_content(enum protocol protocol, u8 flow)
{
    int is_response = protocol == PROTOCOL_HTTP1_RESPONSE;
    return (flow == FLOW_RECEIVE) != is_response ? ROLE_SERVER : ROLE_CLIENT;
}

#define MAX_CHUNKS 128 // pieces of one call: 2 MiB when they are not cut by segments

// Hand over what the transfer in `scratch` wants copied. What is not copied is told by
// the size of the last record, or by a record without bytes.
static __always_inline void send_data(struct scratch *scratch)
{
    struct data_record *record = &scratch->record;
    struct transfer *transfer = &scratch->transfer;
    u64 array = transfer->base;
    u64 at = array;
    u64 segments = transfer->segments;
    u64 size = transfer->size;
    u64 copy = transfer->copy;
    u64 in_segment = segments ? 0 : copy;
    u64 done = 0;

    for (int i = 0; i < MAX_CHUNKS; i++) {
        if (done >= copy)
            break;
        if (in_segment == 0) {
            struct user_iovec next = {};
            if (segments == 0)
                break;
            if (bpf_probe_read_user(&next, sizeof(next), (const void *)array) != 0)
                break;
            array += sizeof(next);
            segments--;
            at = next.base;
            in_segment = next.length;
            continue;
        }
        u64 n = copy - done;
        if (n > in_segment)
            n = in_segment;
        if (n > CHUNK_BYTES)
            n = CHUNK_BYTES;
        // Through memory, see struct transfer; checked again for the verifier.
        *(volatile u64 *)&transfer->piece = n;
        n = *(volatile u64 *)&transfer->piece;
        if (n > CHUNK_BYTES)
            break;
        if (bpf_probe_read_user(scratch->payload, n, (const void *)at) != 0) {
            count_lost(LOST_READ_FAULT);
            break;
        }
        // The last piece that is wanted also tells how much the call moved beyond it.
        u64 told = done + n == copy ? size - done : n;
        record->offset = transfer->offset + done;
        record->size = told;
        record->copied = n;
        if (records.ringbuf_output(scratch, sizeof(struct data_record) + n, BPF_RB_NO_WAKEUP) !=
            0) {
            count_lost(LOST_RING_FULL);
            if (done == 0 && transfer->begins_request)
                count_lost(LOST_REQUESTS);
            return;
        }
        record->header.flags = 0;
        done += told;
        at += n;
        in_segment -= n;
    }
    if (done < size) {
        count_lost(transfer->readable ? LOST_OVER_LIMIT : LOST_UNREADABLE);
        record->offset = transfer->offset + done;
        record->size = size - done;
        record->copied = 0;
        if (records.ringbuf_output(scratch, sizeof(struct data_record), BPF_RB_NO_WAKEUP) != 0)
            count_lost(LOST_RING_FULL);
    }
}

// Where bytes belong that a call has moved.
struct move {
    u64 offset;
    u64 size;
    u64 timestamp_ns;
    u64 pid_tgid;
    struct stream stream;
    u8 flow;
    u8 turned; // the first bytes since some went the other way
};

static __always_inline void describe(struct data_record *record, const struct connection *c,
                                     const struct move *move)
{
    record->header.kind = RECORD_DATA;
    record->header.detail = move->flow;
    record->header.role = c->role;
    record->header.flags = move->turned ? DATA_TURNED : 0;
    record->header.tgid = move->pid_tgid >> 32;
    record->header.timestamp_ns = move->timestamp_ns;
    record->header.connection_id = c->id;
    record->offset = move->offset;
    record->size = move->size;
    record->tid = move->pid_tgid;
    record->reserved = 0;
    record->stream = move->stream;
}

// Take note of the bytes in the connection's account.
static __always_inline void account(struct connection *c, struct move *move)
{
    if (move->flow) {
        move->offset = c->bytes[1];
        c->bytes[1] = move->offset + move->size;
    } else {
        move->offset = c->bytes[0];
        c->bytes[0] = move->offset + move->size;
    }
    move->turned = c->last_flow != move->flow;
    if (move->turned) {
        c->last_flow = move->flow;
        c->turn_bytes = 0;
    }
}

static __always_inline int begins_request(const struct connection *c, const struct move *move)
{
    return move->turned && move->flow == (c->role == ROLE_CLIENT ? FLOW_SEND : FLOW_RECEIVE);
}

// The common case has a way of its own: a connection that is followed, a call that moved
// few bytes out of one buffer, all of them wanted. They are copied straight into the ring,
// into the smallest record of a few sizes that holds them: a reservation has a fixed size.
#define QUICK_BYTES 1024

struct record_of_128 {
    struct data_record record;
    u8 payload[128];
};

struct record_of_256 {
    struct data_record record;
    u8 payload[256];
};

struct record_of_384 {
    struct data_record record;
    u8 payload[384];
};

struct record_of_512 {
    struct data_record record;
    u8 payload[512];
};

struct record_of_1024 {
    struct data_record record;
    u8 payload[1024];
};

static __always_inline void fill(struct data_record *record, u8 *payload, u64 limit, u64 base,
                                 const struct connection *c, const struct move *move)
{
    u64 n = move->size;
    asm volatile("" : "+r"(n)); // checked again for the verifier
    if (n > limit)
        n = limit;
    describe(record, c, move);
    record->copied = n;
    if (bpf_probe_read_user(payload, n, (const void *)base) != 0) {
        record->copied = 0;
        count_lost(LOST_READ_FAULT);
    }
}

static __always_inline void hand_over_quickly(const struct connection *c, const struct move *move,
                                              u64 base)
{
    if (move->size <= 128) {
        struct record_of_128 *slot = records.ringbuf_reserve(sizeof(struct record_of_128));
        if (slot) {
            fill(&slot->record, slot->payload, 128, base, c, move);
            records.ringbuf_submit(slot, BPF_RB_NO_WAKEUP);
            return;
        }
    } else if (move->size <= 256) {
        struct record_of_256 *slot = records.ringbuf_reserve(sizeof(struct record_of_256));
        if (slot) {
            fill(&slot->record, slot->payload, 256, base, c, move);
            records.ringbuf_submit(slot, BPF_RB_NO_WAKEUP);
            return;
        }
    } else if (move->size <= 384) {
        struct record_of_384 *slot = records.ringbuf_reserve(sizeof(struct record_of_384));
        if (slot) {
            fill(&slot->record, slot->payload, 384, base, c, move);
            records.ringbuf_submit(slot, BPF_RB_NO_WAKEUP);
            return;
        }
    } else if (move->size <= 512) {
        struct record_of_512 *slot = records.ringbuf_reserve(sizeof(struct record_of_512));
        if (slot) {
            fill(&slot->record, slot->payload, 512, base, c, move);
            records.ringbuf_submit(slot, BPF_RB_NO_WAKEUP);
            return;
        }
    } else {
        struct record_of_1024 *slot = records.ringbuf_reserve(sizeof(struct record_of_1024));
        if (slot) {
            fill(&slot->record, slot->payload, 1024, base, c, move);
            records.ringbuf_submit(slot, BPF_RB_NO_WAKEUP);
            return;
        }
    }
    count_lost(LOST_RING_FULL);
    if (begins_request(c, move))
        count_lost(LOST_REQUESTS);
}

// What was processed while bytes are moved: asked for sends, the first bytes of a client, and
// those of a server to which the first were sent outside of any stream.
static __always_inline struct layout *layout_for(const struct connection *c, u8 flow)
{
    if (flow == FLOW_SEND || c->awaits_reader || (c->role == ROLE_SERVER && !c->announced))
        return get_layout(c->layout);
    return NULL;
}

// In HAProxy's mode tcp the task that gets bytes from a server sends them on to the client at
// once. So the first answer on a connection can be told to come from that server, whatever of
// it gets lost on the way to user space.
static __always_inline void follow_relay(struct connection *c, struct move *move)
{
    u32 thread = move->pid_tgid;
    if (move->flow == FLOW_RECEIVE) {
        if (!c->awaits_reader)
            return;
        c->awaits_reader = 0;
        if (move->stream.state == STREAM_OTHER) {
            struct reading reading = {.task = move->stream.task, .connection_id = c->id};
            readings.update(&thread, &reading);
        }
        __builtin_memset(&move->stream, 0, sizeof(move->stream)); // for the task alone
    } else if (c->role == ROLE_SERVER && move->stream.state == STREAM_OTHER) {
        struct reading *reading = readings.lookup(&thread);
        if (reading && reading->task == move->stream.task)
            move->stream.address = reading->connection_id;
    }
}

// Whether nothing has to be decided about the connection any more. Then its socket is not
// looked at again either: the end of a socket is not missed, see on_destroy().
static __always_inline int is_followed(const struct connection *c, const struct settings *settings)
{
    return c->phase == PHASE_HTTP && c->announced && c->changes == (u16)settings->changes;
}

// Hand over what a call on a followed connection moved, if that is simple. Returns 0,
// with nothing done, where it is not.
static __always_inline int try_quickly(struct connection *c, const struct settings *settings,
                                       u8 flow, long result, const struct source *source)
{
    struct move move;
    struct layout *layout;
    if (result <= 0 || result > QUICK_BYTES || !source->readable || source->segments)
        return 0;
    u64 before = c->last_flow == flow ? c->turn_bytes : 0;
    if (before + result > settings->turn_limit)
        return 0;
    layout = layout_for(c, flow);
    if (wants_snapshot(layout))
        return 0;
    move.flow = flow;
    move.size = result;
    move.timestamp_ns = bpf_ktime_get_ns();
    move.pid_tgid = bpf_get_current_pid_tgid();
    read_stream(&move.stream, layout);
    follow_relay(c, &move);
    account(c, &move);
    c->turn_bytes += result;
    hand_over_quickly(c, &move, source->base);
    return 1;
}

// A send or receive call has moved `result` bytes, or failed. Both rungs end up here.
static __always_inline void on_transfer(const void *sk, struct connection *c,
                                        struct settings *settings, u8 flow, long result,
                                        const struct source *source)
{
    struct move move;
    struct sock_start start;
    u64 pid_tgid = bpf_get_current_pid_tgid();
    u32 tgid = pid_tgid >> 32;

    if (settings->directions == WANT_NOTHING)
        return; // the end of a connection might be missed now, and its address used again
    read_sock_start(&start, sk);
    if (c && (c->remote_port != START_FIELD(u16, &start, OFF_SKC_DPORT) ||
              c->remote_key != START_FIELD(u32, &start, OFF_SKC_DADDR)))
        c = NULL; // the address of a socket whose end was missed
    if (!c) {
        if (result <= 0 || !is_tcp(sk, &start))
            return;
        c = add_connection(sk, &start, bpf_ktime_get_ns(), PHASE_LATE, ROLE_UNKNOWN,
                           settings->changes);
        if (!c)
            return;
    } else if (c->phase == PHASE_IGNORED) {
        // The settings have changed since; it is in mid-stream now.
        c->phase = PHASE_LATE;
        c->joined_late = 1;
        c->turns = 0;
        c->changes = settings->changes - 1;
    }
    // Ask about the process once, and again whenever something changed: a connection is
    // accepted in an interrupt, its process unknown, and a program may be excluded, or
    // known as HAProxy, a moment after it has started to talk.
    if (c->changes != (u16)settings->changes) {
        c->changes = settings->changes;
        c->layout = layout_of(tgid);
        if (is_excluded(tgid)) {
            ignore_connection(c, settings);
            if (c->announced)
                send_close(c, tgid, bpf_ktime_get_ns(), CLOSE_DESTROYED, 0);
            c->announced = 0;
            return;
        }
    }

    u64 now = bpf_ktime_get_ns();
    if (result <= 0) {
        if (!c->announced)
            return;
        if (result < 0)
            send_close(c, tgid, now, CLOSE_CALL_FAILED, -result);
        else if (flow == FLOW_RECEIVE)
            send_close(c, tgid, now, CLOSE_RECEIVED_END, 0);
        return;
    }

    u32 zero = 0;
    struct scratch *scratch = scratches.lookup(&zero);
    if (!scratch)
        return;
    struct transfer *transfer = &scratch->transfer;
    move.flow = flow;
    move.size = result;
    move.timestamp_ns = now;
    move.pid_tgid = pid_tgid;
    account(c, &move);
    u64 size = result;
    u64 room = settings->turn_limit > c->turn_bytes ? settings->turn_limit - c->turn_bytes : 0;

    // Look at the first bytes of the call where a message may begin and it matters: on a
    // connection not decided yet (a late one is looked at when the talk changes direction,
    // so a long transfer costs nothing), and past the limit, because pipelined messages
    // follow each other without a change of direction.
    transfer->seen = PROTOCOL_UNDECIDED;
    if (c->phase == PHASE_FRESH || (c->phase == PHASE_LATE && move.turned) ||
        (c->phase == PHASE_HTTP && room == 0)) {
        transfer->probe_length = gather_probe(&transfer->probe, c, flow, source, size);
        transfer->seen =
            detect_protocol(&transfer->probe, *(volatile u32 *)&transfer->probe_length);
    }
    u32 seen = *(volatile u32 *)&transfer->seen;

    if (c->phase == PHASE_LATE) {
        if (seen != PROTOCOL_HTTP1_REQUEST && seen != PROTOCOL_HTTP1_RESPONSE) {
            if (move.turned && c->turns++ > LATE_TURNS)
                ignore_connection(c, settings);
            return;
        }
        c->role = role_by_content(seen, flow);
    } else if (c->phase == PHASE_FRESH && seen == PROTOCOL_OTHER) {
        ignore_connection(c, settings);
        if (c->announced)
            send_close(c, tgid, now, CLOSE_DESTROYED, 0);
        c->announced = 0;
        return;
    }
    if (c->phase != PHASE_HTTP && seen != PROTOCOL_UNDECIDED) {
        if (!(settings->protocols & (1 << seen)) || !is_wanted(c, sk, &start, settings) ||
            (c->role == ROLE_SERVER && is_from_agent(&start))) {
            ignore_connection(c, settings);
            return;
        }
        c->phase = PHASE_HTTP;
    }

    // Copy the first bytes of a turn, which hold the head of a message (and its body,
    // when bodies are wanted); of later calls as much as chunk sizes need.
    u64 copy = size;
    if (size > room) {
        copy = room;
        if (copy < settings->beyond_limit)
            copy = settings->beyond_limit;
        if (room == 0 && (seen == PROTOCOL_HTTP1_REQUEST || seen == PROTOCOL_HTTP1_RESPONSE)) {
            c->turn_bytes = 0;
            copy = settings->turn_limit;
        }
        if (copy > size)
            copy = size;
    }
    c->turn_bytes += size;

    transfer->begins_request = begins_request(c, &move);
    struct layout *layout = layout_for(c, flow);
    read_stream(&move.stream, layout);
    follow_relay(c, &move);
    if (!c->announced) {
        if (c->role == ROLE_SERVER && flow == FLOW_RECEIVE && c->connecting.state != STREAM_KNOWN)
            c->connecting = move.stream;
        if (c->role == ROLE_CLIENT && flow == FLOW_SEND && move.stream.state == STREAM_OTHER)
            c->awaits_reader = 1;
    }
    if (!c->announced && !announce(c, sk, &start, tgid, now)) {
        count_lost(LOST_RING_FULL);
        if (transfer->begins_request)
            count_lost(LOST_REQUESTS);
        return;
    }

    if (wants_snapshot(layout) && (flow == FLOW_SEND || c->role == ROLE_SERVER))
        send_snapshot(scratch, layout, c, flow, tgid, now);
    describe(&scratch->record, c, &move);
    transfer->base = source->base;
    transfer->segments = source->segments;
    transfer->readable = source->readable;
    transfer->offset = move.offset;
    transfer->size = size;
    transfer->copy = source->readable ? copy : 0;
    send_data(scratch);
}

// A receive call on a socket that has nothing yet. In HAProxy's mode tcp a stream tries to read
// from its client when it begins. What comes later is read outside of any stream, and passed on
// by other tasks until the server has accepted; so this tells whose client it is.
static __always_inline void note_reader(u64 sk)
{
    struct stream stream;
    struct settings *settings = get_settings();
    if (!settings || !settings->has_haproxy)
        return;
    struct connection *c = connections.lookup(&sk);
    if (!c || c->announced || c->role != ROLE_SERVER || c->connecting.state != STREAM_NOT_ASKED)
        return;
    read_stream(&stream, get_layout(layout_of(bpf_get_current_pid_tgid() >> 32)));
    if (stream.state == STREAM_KNOWN)
        c->connecting = stream;
}

#define EAGAIN 11
#define EINTR 4
#define ERESTARTSYS 512
#define MSG_PEEK 2

// Results that tell nothing about the connection.
static __always_inline int is_idle_result(long result)
{
    return result == -EAGAIN || result == -EINTR || result <= -ERESTARTSYS;
}
