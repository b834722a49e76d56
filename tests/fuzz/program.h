/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * The input of every target is a list of steps of 12 bytes. A step is an edit of something valid
 * (whose checksum is then computed anew, unless a step says otherwise) or a request: so nearly
 * every input gets past the checksums, and the mutator can move, repeat and drop whole steps.
 */

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>

#include "fvd/base/bytes.h"
#include "fvd/base/units.h"
#include "fvd/format/header.h"

namespace fvd::fuzz {

struct Step {
    uint8_t op = 0;
    uint8_t a = 0;
    uint16_t b = 0;
    uint64_t value = 0;
};

inline constexpr size_t kStepSize = 12;
inline constexpr size_t kMaxSteps = 96;

class Program {
  public:
    Program(const uint8_t* data, size_t size);
    const Step* begin() const { return steps_.data(); }
    const Step* end() const { return steps_.data() + count_; }

  private:
    std::array<Step, kMaxSteps> steps_;
    size_t count_ = 0;
};

/** Changes a program in place; the new size. */
size_t mutate_program(uint8_t* data, size_t size, size_t max_size, unsigned seed);

[[noreturn]] inline void broken(const char* what, const char* file, int line) {
    std::fprintf(stderr, "fuzz: %s:%d: broken: %s\n", file, line, what);
    std::abort();
}

#define FUZZ_CHECK(condition) \
    ((condition) ? static_cast<void>(0) : ::fvd::fuzz::broken(#condition, __FILE__, __LINE__))

/* Checksums of what was edited. */
void seal_header(MutableBytes block);
void seal_unit(MutableBytes unit, const ImageId& id);
/** Set a field of a header block: a number, or a text that @p value spells. */
void edit_field(MutableBytes block, unsigned field, uint64_t value);
/** The number of a field, for edit_field(). */
unsigned field_index(const char* name);
/** A journal unit with one record, as a step describes it, around @p epoch. */
void make_unit(const Step& step, MutableBytes unit, const ImageId& id, uint64_t epoch,
               uint64_t* sequence);

/* Targets. */
void fuzz_header(const Program& program);
void fuzz_unit(const Program& program);
void fuzz_journal(const Program& program);
void fuzz_options(const Program& program);
void fuzz_create(const Program& program);
void fuzz_check(const Program& program);
void fuzz_image(const Program& program);
void fuzz_heritage(const Program& program);

}  // namespace fvd::fuzz
