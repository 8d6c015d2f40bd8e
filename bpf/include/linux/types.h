// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Stand-in for the kernel's header of this name: the integer types that bcc's
// built-in headers and ours use. Written for both 64-bit architectures.
#ifndef OTEL_QTAP_LINUX_TYPES_H
#define OTEL_QTAP_LINUX_TYPES_H

typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef signed short __s16;
typedef unsigned int __u32;
typedef signed int __s32;
typedef unsigned long long __u64;
typedef signed long long __s64;

typedef __u8 u8;
typedef __s8 s8;
typedef __u16 u16;
typedef __s16 s16;
typedef __u32 u32;
typedef __s32 s32;
typedef __u64 u64;
typedef __s64 s64;

typedef __u8 uint8_t;
typedef __u16 uint16_t;
typedef __u32 uint32_t;
typedef __u64 uint64_t;
typedef __s8 int8_t;
typedef __s16 int16_t;
typedef __s32 int32_t;
typedef __s64 int64_t;

typedef __u16 __le16, __be16, __sum16;
typedef __u32 __le32, __be32, __wsum;
typedef __u64 __le64, __be64;
typedef __u64 __aligned_u64 __attribute__((aligned(8)));

typedef unsigned long size_t, uintptr_t;
typedef long ssize_t;
typedef long long loff_t;
typedef int pid_t;
typedef unsigned int uid_t, gid_t, gfp_t, qid_t;
typedef unsigned short umode_t;
typedef __u32 dev_t;
typedef __u64 sector_t;
typedef _Bool bool;

#define true 1
#define false 0
#define NULL ((void *)0)
#define __user
#define __bitwise
#define __force
#define __always_inline inline __attribute__((always_inline))

#endif
