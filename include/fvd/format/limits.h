/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* Every size that an image can name has a bound here, with its reason. See docs/format.md. */

#include <cstdint>

namespace fvd::limits {

inline constexpr uint64_t kKiB = 1024;
inline constexpr uint64_t kMiB = 1024 * kKiB;
inline constexpr uint64_t kGiB = 1024 * kMiB;
inline constexpr uint64_t kTiB = 1024 * kGiB;

/* Offsets stay far from 2^63 so that sums of two of them never overflow a signed 64-bit length. */
inline constexpr uint64_t kMaxVirtualSize = 1024 * 1024 * kTiB; /* 1 EiB */
inline constexpr uint64_t kMaxOffset = uint64_t{1} << 62;

/* Sizes of the guest's view are whole sectors. */
inline constexpr uint64_t kSectorSize = 512;

/* Header, bitmap, table and journal start on multiples of this. */
inline constexpr uint64_t kRegionAlignment = 4096;
/* Default start of guest data: file systems and flash like it, and partitions do the same. */
inline constexpr uint64_t kDataAlignment = kMiB;

/* The default block size keeps the bitmap within this, so that all of it fits in memory. */
inline constexpr uint64_t kDefaultBitmapTarget = 4 * kMiB;
inline constexpr uint64_t kDefaultMinBlockSize = 4096;
inline constexpr uint64_t kMinBlockSize = 512;
/* A first write may copy two partial blocks, in memory. */
inline constexpr uint64_t kMaxBlockSize = 2 * kMiB;
/* Two copies are held in memory. */
inline constexpr uint64_t kMaxBitmapSize = 256 * kMiB;

/* Large enough that a table of 16 TiB takes 64 MiB, small enough that little of a chunk is idle. */
inline constexpr uint64_t kDefaultChunkSize = kMiB;
inline constexpr uint64_t kMinChunkSize = 4096;
inline constexpr uint64_t kMaxChunkSize = 64 * kMiB;
inline constexpr uint64_t kMaxTableSize = kGiB;

/* The ring must hold a few groups; recovery reads all of it once. */
inline constexpr uint64_t kMinJournalUnits = 64;
inline constexpr uint64_t kMinDefaultJournalSize = 4 * kMiB;
inline constexpr uint64_t kMaxDefaultJournalSize = 16 * kMiB;
inline constexpr uint64_t kMaxJournalSize = kGiB;

/* Epochs, sequence numbers and header generations only grow, and never get near this by counting:
 * one a nanosecond takes 146 years. Whoever adds one to a proven counter cannot overflow it. */
inline constexpr uint64_t kMaxCounter = uint64_t{1} << 62;

/* Storage of compact images grows in these steps, ahead of need: seldom enough that a file system
 * has little to do with it, in steps small enough that a small image stays a small file. */
inline constexpr uint64_t kDefaultStorageGrowUnit = 16 * kMiB;
/* Storage of compact images grows by at most this much ahead of need. */
inline constexpr uint64_t kMaxStorageGrowUnit = kTiB;

/* Advice on copy-on-read and prefetch: values beyond these are clamped at decode, not refused. */
inline constexpr uint64_t kMaxOutstandingCopyOnRead = kGiB;
inline constexpr int64_t kMaxPrefetchStartDelay =
    30 * 24 * 3600; /* seconds: 30 days; -1 is "never" */
inline constexpr uint64_t kMaxPrefetchSlots = 64;
inline constexpr uint64_t kMaxBytesPerPrefetch = 64 * kMiB;
inline constexpr uint64_t kMaxPrefetchThroughput = 1000000000; /* KiB/s; the 2011 default maximum */
inline constexpr uint64_t kMaxPrefetchTime = 3600 * 1000;      /* ms: one hour */

}  // namespace fvd::limits
