#include "tools/workload/summary.h"

#include <vector>

#include "gtest/gtest.h"

namespace tandem {
namespace {

TEST(SummaryTest, PercentilesAreValuesThatWereMeasured) {
  const std::vector<double> sorted = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  EXPECT_EQ(Percentile(sorted, 0), 1);
  EXPECT_EQ(Percentile(sorted, 0.5), 5);
  EXPECT_EQ(Percentile(sorted, 0.51), 6);
  EXPECT_EQ(Percentile(sorted, 0.9), 9);
  EXPECT_EQ(Percentile(sorted, 0.99), 10);
  EXPECT_EQ(Percentile(sorted, 1), 10);
  EXPECT_EQ(Percentile({}, 0.5), 0);
}

TEST(SummaryTest, OrderDoesNotMatter) {
  const Summary summary = Summarize({4, 1, 3, 2});
  EXPECT_EQ(summary.count, 4u);
  EXPECT_EQ(summary.mean, 2.5);
  EXPECT_EQ(summary.p50, 2);
  EXPECT_EQ(summary.p99, 4);
  EXPECT_EQ(summary.max, 4);
  EXPECT_EQ(Summarize({}).count, 0u);
}

}  // namespace
}  // namespace tandem
