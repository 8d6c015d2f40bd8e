// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// The structures that cross to user space: one for each kind of ring-buffer record.
//
// otel_qtap/receiver/wire.py decodes them and names the same numbers; a change here
// is a change there and raises WIRE_VERSION in both, because recordings keep these
// bytes. Every structure is laid out without padding.

#define WIRE_VERSION 1

enum record_kind {
    RECORD_OPEN = 1,
    RECORD_DATA = 2,
    RECORD_CLOSE = 3,
    RECORD_PROCESS = 4,
};

enum flow {
    FLOW_RECEIVE = 0,
    FLOW_SEND = 1,
};

enum role {
    ROLE_UNKNOWN = 0,
    ROLE_SERVER = 1, // accepted: ingress
    ROLE_CLIENT = 2, // connected: egress
};

enum close_step {
    CLOSE_RECEIVED_END = 1, // a receive call returned 0
    CLOSE_LOCAL = 2,        // this side sent its FIN first
    CLOSE_REMOTE = 3,       // the peer's FIN came first
    CLOSE_RESET = 4,        // straight from ESTABLISHED to CLOSE
    CLOSE_CALL_FAILED = 5,  // a send or receive call failed
    CLOSE_CONNECT_FAILED = 6,
    CLOSE_DESTROYED = 7, // the kernel frees the socket
};

enum process_step {
    PROCESS_EXECUTED = 1,
    PROCESS_FORKED = 2,
    PROCESS_EXITED = 3,
};

// What could not be handed over, and why. Indexes of the map `lost`.
enum lost_reason {
    LOST_RING_FULL = 0,  // records that found no room in the ring
    LOST_REQUESTS = 1,   // of these, records that began with a request head
    LOST_READ_FAULT = 2, // records whose bytes could not be read from the process
    LOST_UNREADABLE = 3, // calls that moved bytes past user memory: sendfile, splice, io_uring
    LOST_OVER_LIMIT = 4, // calls with more segments or bytes than are followed
    LOST_CONNECTIONS_FULL = 5, // calls on sockets for which the table had no room
    LOST_REASONS = 6,
};

struct record_header {
    u8 kind;
    u8 detail; // flow, close_step or process_step
    u8 role;
    u8 flags;
    u32 tgid;
    u64 timestamp_ns; // CLOCK_MONOTONIC
    u64 connection_id;
};

#define OPEN_JOINED_LATE 1 // flags of RECORD_OPEN
#define OPEN_IPV6 2

struct open_record {
    struct record_header header;
    u64 connect_started_ns;
    u64 established_ns;
    u8 local_address[16]; // IPv4 in the first four bytes unless OPEN_IPV6
    u8 remote_address[16];
    u16 local_port;  // host byte order
    u16 remote_port; // network byte order
    u32 reserved;
};

#define DATA_TURNED 1 // flags of RECORD_DATA: the first bytes since some went the other way

struct data_record {
    struct record_header header;
    u64 offset; // of the first byte in this flow of the connection
    u32 size;   // bytes that the process moved; the payload may be shorter
    u32 tid;
    // followed by the payload: the rest of the record
};

struct close_record {
    struct record_header header;
    u32 error;
    u32 reserved;
};

#define EXECUTABLE_BYTES 256

struct process_record {
    struct record_header header;
    u32 parent_tgid;
    u32 reserved;
    // followed by the path of the program (PROCESS_EXECUTED), without its final zero
};
