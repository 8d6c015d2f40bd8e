// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Kernel structures, read through the offsets that the agent took from the kernel's
// own type information (BTF): bcc has no relocations, so nothing here is compiled in.

#define READ_FIELD(destination, base, offset)                                                      \
    bpf_probe_read_kernel(&(destination), sizeof(destination), (const char *)(base) + (offset))

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6

#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_FIN_WAIT1 4
#define TCP_CLOSE 7
#define TCP_CLOSE_WAIT 8
#define TCP_LAST_ACK 9

// The start of struct sock_common: both addresses (IPv4), both ports and the family lie
// in its first bytes, so one read brings what every event needs.
struct sock_start {
    u8 bytes[SOCK_START_BYTES];
};

#define START_FIELD(type, start, offset) (*(type *)((start)->bytes + (offset)))

static __always_inline void read_sock_start(struct sock_start *start, const void *sk)
{
    bpf_probe_read_kernel(start, sizeof(*start), sk);
}

static __always_inline int is_tcp(const void *sk, const struct sock_start *start)
{
    u16 family = START_FIELD(u16, start, OFF_SKC_FAMILY);
    if (family != AF_INET && family != AF_INET6)
        return 0;
    u16 protocol = 0;
    READ_FIELD(protocol, sk, OFF_SK_PROTOCOL);
    return protocol == IPPROTO_TCP;
}

// The number that /proc/PID/ns/net shows: addresses mean something only within it.
static __always_inline u32 namespace_of(const void *sk)
{
    const void *net = NULL;
    u32 number = 0;
    READ_FIELD(net, sk, OFF_SKC_NET);
    READ_FIELD(number, net, OFF_NET_INUM);
    return number;
}

struct address {
    u8 bytes[16];
    u8 is_ipv6;
};

// An IPv4-mapped IPv6 address (::ffff:a.b.c.d) is given as the IPv4 address it is.
static __always_inline void normalise(struct address *address)
{
    u32 *words = (u32 *)address->bytes;
    if (words[0] == 0 && words[1] == 0 && words[2] == 0xffff0000) {
        words[0] = words[3];
        words[2] = 0;
        words[3] = 0;
        address->is_ipv6 = 0;
    }
}

static __always_inline void read_address(struct address *address, const void *sk,
                                         const struct sock_start *start, u32 v4_offset,
                                         u32 v6_offset)
{
    __builtin_memset(address, 0, sizeof(*address));
    if (START_FIELD(u16, start, OFF_SKC_FAMILY) == AF_INET6) {
        address->is_ipv6 = 1;
        bpf_probe_read_kernel(address->bytes, 16, (const char *)sk + v6_offset);
        normalise(address);
    } else {
        bpf_probe_read_kernel(address->bytes, 4, (const char *)sk + v4_offset);
    }
}

// Qtap's ignore_loopback looks at the remote address: 127/8, 169.254/16, 0.0.0.0, ::1, ::.
static __always_inline int is_loopback(const struct address *address)
{
    const u8 *b = address->bytes;
    const u32 *w = (const u32 *)b;
    if (!address->is_ipv6)
        return b[0] == 127 || (b[0] == 169 && b[1] == 254) || w[0] == 0;
    return w[0] == 0 && w[1] == 0 && w[2] == 0 && (w[3] == 0 || w[3] == 0x01000000);
}

// Qtap's filter counts RFC 1918, fc00::/7 and fe80::/10 as internal.
static __always_inline int is_internal(const struct address *address)
{
    const u8 *b = address->bytes;
    if (!address->is_ipv6)
        return b[0] == 10 || (b[0] == 172 && (b[1] & 0xf0) == 16) || (b[0] == 192 && b[1] == 168);
    return (b[0] & 0xfe) == 0xfc || (b[0] == 0xfe && (b[1] & 0xc0) == 0x80);
}

static __always_inline u32 direction_bit(u8 role, const struct address *remote)
{
    if (role == ROLE_SERVER)
        return WANT_INGRESS;
    return is_internal(remote) ? WANT_EGRESS_INTERNAL : WANT_EGRESS_EXTERNAL;
}
