/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Histories as text, one line an operation, so that a failure is a file one can edit. */
#include "history.h"

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <sstream>

#include "world.h"

namespace fvd::sim {

namespace {

/* Every number of a shape under its name; the only list of them. */
struct ShapeField {
    const char* name;
    uint64_t (*get)(const Shape&);
    void (*set)(Shape&, uint64_t);
};

#define FVD_SHAPE_FIELD(field)                                     \
    {                                                              \
#field, [](const Shape& s) { return uint64_t{s.field}; },        \
            [](Shape& s, uint64_t v) { s.field = static_cast<decltype(s.field)>(v); } \
    }

constexpr ShapeField kShapeFields[] = {
    FVD_SHAPE_FIELD(virtual_size),    FVD_SHAPE_FIELD(has_base),
    FVD_SHAPE_FIELD(chunk_size),      FVD_SHAPE_FIELD(grow_chunks),
    FVD_SHAPE_FIELD(used_storage),    FVD_SHAPE_FIELD(base_size),
    FVD_SHAPE_FIELD(block_size),      FVD_SHAPE_FIELD(journal_unit),
    FVD_SHAPE_FIELD(journal_units),   FVD_SHAPE_FIELD(device_unit),
    FVD_SHAPE_FIELD(cell_size),       FVD_SHAPE_FIELD(request_align),
    FVD_SHAPE_FIELD(separate_data),   FVD_SHAPE_FIELD(presets),
    FVD_SHAPE_FIELD(host_discards),   FVD_SHAPE_FIELD(host_zeroes),
    FVD_SHAPE_FIELD(slow_reads),      FVD_SHAPE_FIELD(most_size),
    FVD_SHAPE_FIELD(device_chunks),   FVD_SHAPE_FIELD(fill),
    FVD_SHAPE_FIELD(lock_waits),      FVD_SHAPE_FIELD(depth),
    FVD_SHAPE_FIELD(explore_percent), FVD_SHAPE_FIELD(budget),
    FVD_SHAPE_FIELD(nested_percent),
};
#undef FVD_SHAPE_FIELD

bool parse_shape(const std::string& word, Shape& shape) {
    const size_t equals = word.find('=');
    for (const ShapeField& field : kShapeFields) {
        if (equals != std::string::npos && word.compare(0, equals, field.name) == 0) {
            field.set(shape, std::strtoull(word.c_str() + equals + 1, nullptr, 10));
            return true;
        }
    }
    return false;
}

bool parse_op(std::istringstream& line, const std::string& name, Op& op) {
    for (size_t k = 0; k < static_cast<size_t>(OpKind::count); k++) {
        op.kind = static_cast<OpKind>(k);
        if (name == operation(op.kind).name) {
            return static_cast<bool>(line >> op.number >> op.offset >> op.length >> op.flags >>
                                     op.a >> op.b);
        }
    }
    return false;
}

}  // namespace

std::string op_text(const Op& op) {
    char text[160];
    const char* name = operation(op.kind).name;
    if (op.kind == OpKind::fault) {
        std::snprintf(text, sizeof(text),
                      "fault calls=%" PRIx64 " files=%x errno=%" PRIu64 " skip=%" PRIu64 "%s", op.a,
                      op.flags, op.offset, op.length, op.b != 0 ? " for ever" : "");
    } else if (op.length != 0) {
        std::snprintf(text, sizeof(text), "%s %" PRIu64 "+%" PRIu64 "%s", name, op.offset,
                      op.length, (op.flags & FVD_REQ_FUA) != 0 ? " fua" : "");
    } else {
        std::snprintf(text, sizeof(text), "%s", name);
    }
    return text;
}

std::string History::to_text() const {
    std::ostringstream out;
    out << "# columns of an operation: name number offset length flags a b\n";
    out << "seed " << seed << "\n";
    for (const ShapeField& field : kShapeFields) {
        out << "shape " << field.name << "=" << field.get(shape) << "\n";
    }
    for (const Op& op : ops) {
        out << operation(op.kind).name << " " << op.number << " " << op.offset << " " << op.length
            << " " << op.flags << " " << op.a << " " << op.b << "\n";
    }
    return out.str();
}

bool History::parse(const std::string& text, History* history, std::string* error) {
    std::istringstream lines(text);
    std::string line_text;
    *history = {};
    while (std::getline(lines, line_text)) {
        std::istringstream line(line_text);
        std::string word;
        if (!(line >> word) || word[0] == '#') {
            continue;
        }
        bool good = false;
        if (word == "seed") {
            good = static_cast<bool>(line >> history->seed);
        } else if (word == "shape") {
            good = (line >> word) && parse_shape(word, history->shape);
        } else {
            Op op;
            good = parse_op(line, word, op);
            history->ops.push_back(op);
        }
        if (!good) {
            *error = line_text;
            return false;
        }
    }
    return true;
}

}  // namespace fvd::sim
