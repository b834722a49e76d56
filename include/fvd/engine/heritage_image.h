/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * An open image of January 2011: read into memory, never written to. It stands beside Image, and
 * c_api.cc is the only place that knows of both.
 */

#include <cstdint>

#include "fvd/engine/host.h"
#include "fvd/engine/image.h"
#include "fvd/format/heritage.h"

namespace fvd {

class HeritageImage {
  public:
    explicit HeritageImage(Host& host) : host_(host) {}
    HeritageImage(const HeritageImage&) = delete;
    HeritageImage& operator=(const HeritageImage&) = delete;

    /** Does the file begin with the magic of 2011? False as well where it cannot be read. May
     * suspend, as may the next three. */
    static bool is_one(Host& host);

    /* The life of an image; fvd.h tells the order. */
    Error load();
    /** EROFS for a mode other than read-only. */
    Error start(StartMode mode);
    void stop() { started_ = false; }

    /** The metadata into memory, the journal of an image that was not closed in order over it. A
     * step of start(), and all that a check needs. EINVAL: something in it makes no sense. */
    Error fold(heritage::JournalFacts* facts);
    const heritage::Header& header() const { return header_; }
    const heritage::View& view() const { return view_; }

    /* Guest requests, inside [0, virtual_size). */
    Status read(uint64_t offset, uint64_t length, GuestBuffer to, uint32_t flags);
    heritage::Placement where(uint64_t offset, uint64_t length) const {
        return view_.where(offset, length);
    }

    bool needs_base() const;
    bool is_clean() const { return header_.clean_shutdown; }
    void describe(fvd_info* info) const;
    void progress(fvd_progress* progress) const;

  private:
    template <typename Visit>
    Error read_region(const char* name, uint64_t offset, uint64_t size, Visit visit);
    Error load_journal(heritage::JournalFacts* facts);
    Error set_storage();
    void warn_of(const heritage::JournalFacts& facts);

    Host& host_;
    heritage::Header header_;
    HostBuffer words_;
    HostBuffer entries_;
    heritage::View view_;
    bool started_ = false;
};

/** For the user who wants to write to an image of 2011. */
Error heritage_is_read_only();

}  // namespace fvd
