/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/base/result.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <string>

namespace fvd {
namespace {

TEST(Status, IsOkUntilToldOtherwise) {
    EXPECT_TRUE(Status().ok());
    EXPECT_TRUE(Status(0).ok());
    EXPECT_FALSE(Status(-EIO).ok());
    EXPECT_EQ(Status(-EIO).value(), -EIO);
}

TEST(Status, OrElseKeepsTheFirstError) {
    EXPECT_EQ(Status().or_else(Status()).value(), 0);
    EXPECT_EQ(Status().or_else(-EIO).value(), -EIO);
    EXPECT_EQ(Status(-ENOSPC).or_else(-EIO).value(), -ENOSPC);
    EXPECT_EQ(Status(-ENOSPC).or_else(0).value(), -ENOSPC);
}

TEST(StatusDeathTest, APositiveErrnoIsAMistake) {
    EXPECT_DEATH((void)Status(EIO), "assertion failed");
}

TEST(Error, CarriesCodeAndSentence) {
    const Error error = Error::make(-EINVAL, "%s is %d", "block_size", 513);
    EXPECT_FALSE(error.ok());
    EXPECT_EQ(error.code, -EINVAL);
    EXPECT_STREQ(error.text, "block_size is 513");
    EXPECT_TRUE(Error::none().ok());
    EXPECT_STREQ(Error::none().text, "");
}

TEST(Error, CutsALongSentence) {
    const std::string longer(Error::kTextSize + 100, 'x');
    const Error error = Error::make(-EIO, "%s", longer.c_str());
    EXPECT_EQ(std::string(error.text), std::string(Error::kTextSize - 1, 'x'));
}

TEST(ErrorDeathTest, AnErrorWithoutCodeIsAMistake) {
    EXPECT_DEATH((void)Error::make(0, "nothing"), "assertion failed");
}

TEST(Result, HoldsAValueOrAnError) {
    Result<int> good(7);
    EXPECT_TRUE(good.ok());
    EXPECT_EQ(good.value(), 7);
    good.value() = 8;
    EXPECT_EQ(good.value(), 8);
    const Result<int> bad(Error::make(-ENOMEM, "none left"));
    EXPECT_FALSE(bad.ok());
    EXPECT_EQ(bad.error().code, -ENOMEM);
}

TEST(ResultDeathTest, TheWrongHalfIsAsserted) {
    Result<int> bad(Error::make(-ENOMEM, "none left"));
    EXPECT_DEATH((void)bad.value(), "assertion failed");
    const Result<int>& const_bad = bad;
    EXPECT_DEATH((void)const_bad.value(), "assertion failed");
    EXPECT_DEATH((void)Result<int>(Error{}), "assertion failed");
}

}  // namespace
}  // namespace fvd
