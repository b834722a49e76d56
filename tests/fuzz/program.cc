/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "program.h"

#include <algorithm>
#include <cstring>

#include "fvd/base/crc32c.h"
#include "fvd/format/chunk_table.h"
#include "fvd/format/journal_unit.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace fvd::fuzz {

Program::Program(const uint8_t* data, size_t size) {
    count_ = std::min(size / kStepSize, kMaxSteps);
    for (size_t i = 0; i < count_; i++) {
        const ConstBytes bytes = std::as_bytes(std::span(data + i * kStepSize, kStepSize));
        steps_[i] = {load_le<uint8_t>(bytes, 0), load_le<uint8_t>(bytes, 1),
                     load_le<uint16_t>(bytes, 2), load_le<uint64_t>(bytes, 4)};
    }
}

/* ------------------------------------------------------------------------------- mutation */

namespace {

class Draw {
  public:
    explicit Draw(unsigned seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
    uint64_t below(uint64_t limit) {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return (state_ * 0x2545F4914F6CDD1Du >> 16) % limit;
    }

  private:
    uint64_t state_;
};

/* Limits of the format, sizes of the templates, and their neighbours. */
uint64_t interesting(Draw& draw) {
    static constexpr uint64_t kValues[] = {0,
                                           1,
                                           2,
                                           3,
                                           8,
                                           63,
                                           64,
                                           511,
                                           512,
                                           513,
                                           1024,
                                           4096,
                                           7680,
                                           8191,
                                           8192,
                                           12288,
                                           32768,
                                           40960,
                                           45056,
                                           49152,
                                           65536,
                                           98304,
                                           114688,
                                           131072,
                                           196608,
                                           262144,
                                           2097152,
                                           1 << 28,
                                           1 << 30,
                                           UINT32_MAX,
                                           uint64_t{1} << 32,
                                           uint64_t{1} << 40,
                                           uint64_t{1} << 60,
                                           uint64_t{1} << 61,
                                           uint64_t{1} << 62,
                                           uint64_t{1} << 63,
                                           UINT64_MAX};
    const uint64_t value = kValues[draw.below(std::size(kValues))];
    switch (draw.below(6)) {
        case 0:
            return value - 1;
        case 1:
            return value + 1;
        case 2:
            return value * draw.below(16);
        case 3:
            return draw.below(1 << 18);
        default:
            return value;
    }
}

void put(uint8_t* at, Draw& draw) {
    at[0] = static_cast<uint8_t>(draw.below(256));
    at[1] = static_cast<uint8_t>(draw.below(256));
    const MutableBytes rest = std::as_writable_bytes(std::span(at, kStepSize));
    store_le<uint16_t>(rest, 2, static_cast<uint16_t>(interesting(draw)));
    store_le<uint64_t>(rest, 4, interesting(draw));
}

}  // namespace

size_t mutate_program(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
    Draw draw(seed);
    const size_t most = std::min(max_size / kStepSize, kMaxSteps);
    size_t count = std::min(size / kStepSize, most);
    for (uint64_t rounds = 1 + draw.below(3); rounds != 0 && most != 0; rounds--) {
        uint8_t* const some = data + draw.below(std::max<size_t>(count, 1)) * kStepSize;
        const auto rest = static_cast<size_t>(data + count * kStepSize - some);
        const uint64_t choice = count == 0 ? 0 : draw.below(8);
        if (choice <= 1 && count < most) {
            std::memmove(some + kStepSize, some, rest);
            put(some, draw);
            count++;
        } else if (choice == 2 && count < most) {
            std::memmove(some + kStepSize, some, rest); /* repeats it */
            count++;
        } else if (choice == 3 && count > 1) {
            std::memmove(some, some + kStepSize, rest - kStepSize);
            count--;
        } else if (choice == 4) {
            std::swap_ranges(some, some + kStepSize, data + draw.below(count) * kStepSize);
        } else if (choice == 5) {
            store_le<uint64_t>(std::as_writable_bytes(std::span(some, kStepSize)), 4,
                               interesting(draw));
        } else if (choice == 6) {
            some[draw.below(4)] = static_cast<uint8_t>(draw.below(256));
        } else if (count != 0) {
            LLVMFuzzerMutate(some, kStepSize, kStepSize);
        }
    }
    return count * kStepSize;
}

/* ------------------------------------------------------------------------------- edits */

void seal_header(MutableBytes block) {
    store_le<uint32_t>(block, kHeaderSize - 4, crc32c(block.first(kHeaderSize - 4)));
}

void seal_unit(MutableBytes unit, const ImageId& id) {
    store_le<uint32_t>(unit, 4, 0);
    store_le<uint32_t>(unit, 4, crc32c(unit, crc32c(id)));
}

void edit_field(MutableBytes block, unsigned field, uint64_t value) {
    const std::span<const HeaderField> fields = header_fields();
    const HeaderField& place = fields[field % fields.size()];
    const MutableBytes bytes = block.subspan(place.offset, place.size);
    if (bytes.size() > 8) {
        /* The low bits say how many; the eight bytes are repeated. */
        const size_t length = std::min<size_t>(value % 32 < 30 ? value % 32 : 2000, bytes.size());
        for (size_t i = 0; i < bytes.size(); i++) {
            bytes[i] = i < length ? static_cast<std::byte>(value >> (i % 8 * 8)) : std::byte{0};
        }
        return;
    }
    for (size_t i = 0; i < bytes.size(); i++) {
        bytes[i] = static_cast<std::byte>(value >> (i * 8));
    }
}

unsigned field_index(const char* name) {
    const std::span<const HeaderField> fields = header_fields();
    for (unsigned i = 0; i < fields.size(); i++) {
        if (std::strcmp(fields[i].name, name) == 0) {
            return i;
        }
    }
    broken(name, __FILE__, __LINE__);
}

void make_unit(const Step& step, MutableBytes unit, const ImageId& id, uint64_t epoch,
               uint64_t* sequence) {
    UnitWriter writer(unit);
    const uint64_t first = step.value & 0xFFFF;
    const uint64_t count = 1 + (step.value >> 16 & 0x3FF);
    writer.add_bitmap({BlockIndex(first), BlockIndex(first + count)});
    if ((step.value >> 26 & 3) == 3) {
        const uint32_t entries[] = {step.a, kNotStored, static_cast<uint32_t>(step.value >> 40)};
        writer.add_table(ChunkIndex(step.value >> 40 & 0x7FF),
                         std::span(entries).first(1 + step.a % 3));
    }
    UnitHeader header;
    header.epoch = epoch + (step.b & 3) - ((step.b & 3) == 3 ? 4 : 0); /* 0, 1, 2, -1 */
    header.epoch = (step.b & 4) != 0 ? header.epoch : epoch;
    header.sequence = *sequence + (step.b >> 3 & 3);
    header.group_index =
        static_cast<uint32_t>(std::min<uint64_t>(step.b >> 5 & 7, header.sequence));
    header.group_size = header.group_index + 1 + (step.b >> 8 & 3);
    const uint64_t start = header.sequence - header.group_index;
    header.tail_sequence = start - std::min<uint64_t>(step.b >> 10, start);
    writer.finish(header, id);
    *sequence = header.sequence + 1;
}

}  // namespace fvd::fuzz
