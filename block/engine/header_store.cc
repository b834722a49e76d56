/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/engine/header_store.h"

#include <algorithm>
#include <cerrno>
#include <iterator>

#include "fvd/base/plant.h"
#include "fvd/format/limits.h"

namespace fvd {

Result<ChosenHeader> load_header(Host& host) {
    const int64_t length = host.length(FVD_FILE_IMAGE);
    if (length < 0) {
        return Error::make(static_cast<int>(length), "the length of the image cannot be read");
    }
    HostBuffer buffer(host, kHeaderRegionSize);
    if (!buffer) {
        return Error::make(-ENOMEM, "no memory for the header");
    }
    const size_t there = std::min(static_cast<size_t>(length), buffer.size());
    host.announce(FVD_EVENT_OPEN_READ);
    if (there != 0) {
        const Status status =
            read_bytes(host, FVD_FILE_IMAGE, kHeaderPrimaryOffset, buffer.bytes().first(there));
        if (!status.ok()) {
            return Error::make(status.value(), "the header cannot be read");
        }
    }
    return choose_header(buffer.bytes().first(there));
}

namespace {

struct Step {
    uint64_t offset;
    Event write_event;
    Event flush_event;
};

/* In the order of HeaderSlot. */
constexpr Step kSteps[] = {
    {kHeaderCopyOffset, FVD_EVENT_HEADER_COPY, FVD_EVENT_HEADER_COPY_FLUSH},
    {kHeaderPrimaryOffset, FVD_EVENT_HEADER_PRIMARY, FVD_EVENT_HEADER_PRIMARY_FLUSH},
};

}  // namespace

Status update_header(Host& host, Header& header, HeaderSlot* first, FlushHeader flush,
                     void* owner) {
    if (FVD_PLANT(header_copy_always_first)) {
        *first = HeaderSlot::copy;
    }
    {
        HostLock lock(host);
        /* Nobody counts that far. An image that claims the last numbers must stay one that opens.
         */
        header.generation = std::min(header.generation + 1, limits::kMaxCounter);
        header.journal_epoch = std::min(header.journal_epoch, limits::kMaxCounter);
    }
    HostBuffer block(host, kHeaderSize);
    if (!block) {
        return -ENOMEM;
    }
    encode_header(header, block.bytes());
    for (size_t i = 0; i < std::size(kSteps); i++) {
        const Step& step = kSteps[static_cast<size_t>(*first)];
        host.announce(step.write_event);
        Status status = write_bytes(host, FVD_FILE_IMAGE, step.offset, block.bytes());
        if (!status.ok()) {
            /* ENOMEM is ours, and says that nothing was written. */
            return status.value() == -ENOMEM ? Status(-EIO) : status;
        }
        status =
            FVD_PLANT(header_without_flush) && i == 0 ? Status() : flush(owner, step.flush_event);
        if (!status.ok()) {
            return status;
        }
        /* This one is good now; the other may be cut. */
        *first = *first == HeaderSlot::copy ? HeaderSlot::primary : HeaderSlot::copy;
    }
    *first = HeaderSlot::copy;
    return {};
}

}  // namespace fvd
