/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/engine/fetch_list.h"

#include <gtest/gtest.h>

#include <vector>

#include "engine/memory_host.h"

namespace fvd::testing {
namespace {

constexpr uint64_t kMiB = 1024 * 1024;

class FetchListTest : public ::testing::Test {
  protected:
    FetchListTest() { fetches.keep_memory(true); }

    /** @p count requests of @p size at once, which then end, the oldest first. */
    void fetch(int count, uint64_t size) {
        std::vector<Fetch*> under_way;
        for (int i = 0; i < count; i++) {
            Fetch what;
            what.blocks = {BlockIndex{next_}, BlockIndex{next_ + 1}};
            what.bytes = {next_ * size, (next_ + 1) * size};
            what.who = FetchFor::prefetch;
            next_++;
            under_way.push_back(fetches.add(what));
            ASSERT_NE(under_way.back(), nullptr);
        }
        for (Fetch* fetch : under_way) {
            fetches.remove(*fetch);
        }
    }

    MemoryHost host;
    FetchList fetches{host};

  private:
    uint64_t next_ = 0;
};

TEST_F(FetchListTest, WhereUseGoesUpAndDownNothingIsTakenAnew) {
    fetch(16, kMiB);
    EXPECT_EQ(host.allocations, 16);
    for (int i = 0; i < 20; i++) {
        fetch(2, kMiB);
        fetch(16, kMiB);
    }
    EXPECT_EQ(host.allocations, 16);
    EXPECT_EQ(host.live, 16);
}

TEST_F(FetchListTest, APeakThatIsLongOverIsForgotten) {
    fetch(50, kMiB);
    fetch(1, kMiB);
    EXPECT_GE(host.live, 49);
    for (int i = 0; i < 64 * 50; i++) {
        fetch(1, kMiB);
    }
    EXPECT_GE(host.live, 3); /* 4 MiB are always kept */
    EXPECT_LE(host.live, 4);
}

TEST_F(FetchListTest, WhenSizesChangeTheOldestPiecesGo) {
    fetch(64, 64 * 1024);
    fetch(16, kMiB);               /* what was kept is too small for them */
    EXPECT_LE(host.live, 16 + 32); /* an eighth more than was in use, at most */
    fetch(16, kMiB);
    EXPECT_EQ(host.allocations, 64 + 16);
}

TEST_F(FetchListTest, WhenNothingIsToBeKeptAllGoes) {
    fetch(16, kMiB);
    fetches.keep_memory(false);
    EXPECT_EQ(host.live, 0);
    fetch(16, kMiB);
    EXPECT_EQ(host.live, 0);
}

TEST_F(FetchListTest, WhereMemoryIsShortWhatIsKeptIsGivenUpFirst) {
    fetch(3, 64 * 1024);
    EXPECT_EQ(host.live, 3);
    host.fail_allocation = host.allocations;
    fetch(1, kMiB);
    EXPECT_EQ(host.live, 1);
}

}  // namespace
}  // namespace fvd::testing
