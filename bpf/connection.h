// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// A connection's life: known from its first packet or met on the way, decided by its
// first bytes, followed or ignored, gone when the kernel destroys its socket.

static __always_inline u64 new_connection_id(u64 now)
{
    // Time and processor together never repeat. The wrap after 208 days of uptime
    // does no harm: two connections would have to be that far apart and both alive.
    return (now << 10) | (bpf_get_smp_processor_id() & 1023);
}

static __always_inline struct settings *get_settings(void)
{
    u32 zero = 0;
    return settings_map.lookup(&zero);
}

// A connection by its ports and the address of its server (IPv4, or what the kernel
// keeps in that place), the same from both of its ends.
static __always_inline u64 own_end(u32 server_address, u16 server_port, u16 client_port)
{
    return (u64)server_address << 32 | (u32)server_port << 16 | client_port;
}

static __always_inline u16 to_host_order(u16 port)
{
    return port >> 8 | port << 8;
}

// Whether the other end of an accepted connection is the agent.
static __always_inline int is_from_agent(const struct sock_start *start)
{
    u64 key =
        own_end(START_FIELD(u32, start, OFF_SKC_RCV_SADDR), START_FIELD(u16, start, OFF_SKC_NUM),
                to_host_order(START_FIELD(u16, start, OFF_SKC_DPORT)));
    return own_ends.lookup(&key) != 0;
}

static __always_inline void remember_own(const void *sk)
{
    struct sock_start start;
    u8 one = 1;
    read_sock_start(&start, sk);
    u64 key = own_end(START_FIELD(u32, &start, OFF_SKC_DADDR),
                      to_host_order(START_FIELD(u16, &start, OFF_SKC_DPORT)),
                      START_FIELD(u16, &start, OFF_SKC_NUM));
    own_ends.update(&key, &one);
}

static __always_inline int is_excluded(u32 tgid)
{
    return excluded.lookup(&tgid) != 0;
}

// Enter a socket into the table, in place of any earlier one at the same address.
static __always_inline struct connection *add_connection(const void *sk,
                                                         const struct sock_start *start, u64 now,
                                                         u8 phase, u8 role, u16 changes)
{
    u64 key = (u64)sk;
    struct connection fresh;
    __builtin_memset(&fresh, 0, sizeof(fresh));
    fresh.id = new_connection_id(now);
    fresh.remote_key = START_FIELD(u32, start, OFF_SKC_DADDR);
    fresh.remote_port = START_FIELD(u16, start, OFF_SKC_DPORT);
    fresh.local_port = START_FIELD(u16, start, OFF_SKC_NUM);
    fresh.phase = phase;
    fresh.role = role;
    fresh.joined_late = phase == PHASE_LATE;
    fresh.last_flow = 2;
    fresh.changes = changes - 1; // so that the first event asks
    if (connections.update(&key, &fresh) != 0) {
        count_lost(LOST_CONNECTIONS_FULL);
        return NULL;
    }
    return connections.lookup(&key);
}

static __always_inline void ignore_connection(struct connection *c, const struct settings *settings)
{
    c->phase = PHASE_IGNORED;
    c->generation = settings->generation;
}

// Whether the settings in force have been seen to have no use for this connection.
static __always_inline int is_passed_over(const struct connection *c,
                                          const struct settings *settings)
{
    return c->phase == PHASE_IGNORED && c->generation == (u16)settings->generation;
}

// Whether the settings want this connection, as soon as its role is known.
static __always_inline int is_wanted(const struct connection *c, const void *sk,
                                     const struct sock_start *start,
                                     const struct settings *settings)
{
    struct address remote;
    read_address(&remote, sk, start, OFF_SKC_DADDR, OFF_SKC_V6_DADDR);
    if (settings->ignore_loopback && is_loopback(&remote))
        return 0;
    return (settings->directions & direction_bit(c->role, &remote)) != 0;
}

// Hand over RECORD_OPEN. A ring without room leaves `announced` unset, and the next
// event of the connection tries again: data never goes out before it.
static __always_inline int announce(struct connection *c, const void *sk,
                                    const struct sock_start *start, u32 tgid, u64 now)
{
    struct open_record record;
    struct address address;
    __builtin_memset(&record, 0, sizeof(record));
    record.header.kind = RECORD_OPEN;
    record.header.role = c->role;
    record.header.tgid = tgid;
    record.header.timestamp_ns = now;
    record.header.connection_id = c->id;
    record.connect_started_ns = c->connect_started_ns;
    record.established_ns = c->established_ns;
    record.local_port = c->local_port ? c->local_port : START_FIELD(u16, start, OFF_SKC_NUM);
    record.remote_port = START_FIELD(u16, start, OFF_SKC_DPORT);
    record.namespace = namespace_of(sk);
    record.connecting = c->connecting;
    if (c->joined_late)
        record.header.flags |= OPEN_JOINED_LATE;
    read_address(&address, sk, start, OFF_SKC_RCV_SADDR, OFF_SKC_V6_RCV_SADDR);
    __builtin_memcpy(record.local_address, address.bytes, 16);
    read_address(&address, sk, start, OFF_SKC_DADDR, OFF_SKC_V6_DADDR);
    __builtin_memcpy(record.remote_address, address.bytes, 16);
    if (address.is_ipv6)
        record.header.flags |= OPEN_IPV6;
    if (records.ringbuf_output(&record, sizeof(record), BPF_RB_NO_WAKEUP) != 0) {
        count_lost(LOST_RING_FULL);
        return 0;
    }
    c->announced = 1;
    return 1;
}

static __always_inline void send_close_in(const struct connection *c, u32 tgid, u64 now, u8 step,
                                          u32 error, const struct stream *stream)
{
    struct close_record record;
    __builtin_memset(&record, 0, sizeof(record));
    record.header.kind = RECORD_CLOSE;
    record.header.detail = step;
    record.header.role = c->role;
    record.header.tgid = tgid;
    record.header.timestamp_ns = now;
    record.header.connection_id = c->id;
    record.error = error;
    record.bytes[0] = c->bytes[0];
    record.bytes[1] = c->bytes[1];
    if (stream)
        record.stream = *stream;
    if (records.ringbuf_output(&record, sizeof(record), BPF_RB_NO_WAKEUP) != 0)
        count_lost(LOST_RING_FULL);
}

static __always_inline void send_close(const struct connection *c, u32 tgid, u64 now, u8 step,
                                       u32 error)
{
    send_close_in(c, tgid, now, step, error, NULL);
}

// sock:inet_sock_set_state (const struct sock *sk, int old, int new).
//
// A connect is in the context of its process; nearly everything else may come from a
// soft interrupt, where the current process is whoever was running.
int on_state_change(struct bpf_raw_tracepoint_args *ctx)
{
    const void *sk = (const void *)ctx->args[0];
    int old_state = ctx->args[1];
    int new_state = ctx->args[2];
    u64 key = (u64)sk;
    struct connection *c;
    struct sock_start start;

    struct settings *settings = get_settings();
    if (!settings || settings->directions == WANT_NOTHING)
        return 0;

    if (new_state == TCP_SYN_SENT || (old_state == TCP_SYN_RECV && new_state == TCP_ESTABLISHED)) {
        u8 role = new_state == TCP_SYN_SENT ? ROLE_CLIENT : ROLE_SERVER;
        read_sock_start(&start, sk);
        if (!is_tcp(sk, &start))
            return 0;
        u64 now = bpf_ktime_get_ns();
        c = add_connection(sk, &start, now, PHASE_FRESH, role, settings->changes);
        if (!c)
            return 0;
        if (role == ROLE_CLIENT)
            c->connect_started_ns = now;
        else
            c->established_ns = now;
        u32 tgid = bpf_get_current_pid_tgid() >> 32; // means something for a client only
        if (role == ROLE_CLIENT) {
            c->is_own = tgid == settings->agent;
            c->layout = layout_of(tgid);
            struct layout *layout = get_layout(c->layout);
            read_stream(&c->connecting, layout);
            u32 zero = 0;
            struct scratch *scratch = scratches.lookup(&zero);
            if (wants_snapshot(layout) && scratch)
                send_snapshot(scratch, layout, c, SNAPSHOT_CONNECT, tgid, now);
        }
        if ((role == ROLE_CLIENT && is_excluded(tgid)) || !is_wanted(c, sk, &start, settings))
            ignore_connection(c, settings);
        return 0;
    }

    c = connections.lookup(&key);
    if (!c)
        return 0;
    if (c->is_own && old_state == TCP_SYN_SENT && new_state == TCP_ESTABLISHED)
        remember_own(sk);
    if (c->phase == PHASE_IGNORED)
        return 0;

    u64 now = bpf_ktime_get_ns();
    if (old_state == TCP_SYN_SENT && new_state == TCP_ESTABLISHED) {
        c->established_ns = now;
        READ_FIELD(c->local_port, sk, OFF_SKC_NUM);
        return 0;
    }

    u8 step;
    struct stream stream = {};
    if (new_state == TCP_FIN_WAIT1 || new_state == TCP_LAST_ACK) {
        // Only a call of the process itself leads here, so the stream is its own.
        c->is_shut = 1;
        if (c->role == ROLE_SERVER && c->announced)
            read_stream(&stream, get_layout(c->layout));
    }
    if (old_state == TCP_SYN_SENT && new_state == TCP_CLOSE)
        step = CLOSE_CONNECT_FAILED;
    else if (old_state == TCP_ESTABLISHED && new_state == TCP_FIN_WAIT1)
        step = CLOSE_LOCAL;
    else if (old_state == TCP_ESTABLISHED && new_state == TCP_CLOSE_WAIT)
        step = CLOSE_REMOTE;
    else if ((old_state == TCP_ESTABLISHED || old_state == TCP_CLOSE_WAIT) &&
             new_state == TCP_CLOSE)
        step = CLOSE_RESET;
    else if (new_state == TCP_LAST_ACK && stream.state != STREAM_NOT_ASKED)
        step = CLOSE_LOCAL_TOO;
    else
        return 0;

    u32 error = 0;
    READ_FIELD(error, sk, OFF_SK_ERR);
    if (step == CLOSE_CONNECT_FAILED && !c->announced) {
        read_sock_start(&start, sk);
        announce(c, sk, &start, bpf_get_current_pid_tgid() >> 32, now);
    }
    if (c->announced)
        send_close_in(c, 0, now, step, error, &stream);
    return 0;
}

// tcp:tcp_destroy_sock (struct sock *sk): after this, nothing can come for the socket.
int on_destroy(struct bpf_raw_tracepoint_args *ctx)
{
    u64 key = (u64)ctx->args[0];
    struct connection *c = connections.lookup(&key);
    if (!c)
        return 0;
    if (c->announced) {
        // Reset by the peer, or dropped without a FIN: then it is the process that closes
        // now, and the stream is its own. Else it may be an interrupt.
        struct stream stream = {};
        if (c->role == ROLE_SERVER && !c->is_shut)
            read_stream(&stream, get_layout(c->layout));
        send_close_in(c, 0, bpf_ktime_get_ns(), CLOSE_DESTROYED, 0, &stream);
    }
    connections.delete(&key);
    return 0;
}
