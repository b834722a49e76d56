/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One program for all targets: the environment says which. */
#include <cstring>

#include "program.h"

namespace {

using fvd::fuzz::Program;

struct Target {
    const char* name;
    void (*run)(const Program& program);
};

constexpr Target kTargets[] = {
    {"header", fvd::fuzz::fuzz_header},   {"unit", fvd::fuzz::fuzz_unit},
    {"journal", fvd::fuzz::fuzz_journal}, {"options", fvd::fuzz::fuzz_options},
    {"create", fvd::fuzz::fuzz_create},   {"check", fvd::fuzz::fuzz_check},
    {"image", fvd::fuzz::fuzz_image},     {"heritage", fvd::fuzz::fuzz_heritage},
};

const Target* target = nullptr;

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
    const char* name = std::getenv("FVD_FUZZ_TARGET");
    for (const Target& candidate : kTargets) {
        if (name != nullptr && std::strcmp(name, candidate.name) == 0) {
            target = &candidate;
        }
    }
    if (target == nullptr) {
        std::fputs("FVD_FUZZ_TARGET must name one of:", stderr);
        for (const Target& candidate : kTargets) {
            std::fprintf(stderr, " %s", candidate.name);
        }
        std::fputs("\n", stderr);
        std::exit(2);
    }
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    target->run(Program(data, size));
    return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
    return fvd::fuzz::mutate_program(data, size, max_size, seed);
}
