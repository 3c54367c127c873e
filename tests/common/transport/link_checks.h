// What tests of links look at.
#ifndef TANDEM_TESTS_COMMON_TRANSPORT_LINK_CHECKS_H_
#define TANDEM_TESTS_COMMON_TRANSPORT_LINK_CHECKS_H_

#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>

#include "common/counters.h"
#include "tests/common/transport/fake_expert.h"

namespace tandem {

inline int64_t Counter(const CounterSnapshot& snapshot, const std::string& name) {
  for (const auto& [key, value] : snapshot) {
    if (key == name) return value;
  }
  ADD_FAILURE() << "no counter " << name;
  return -1;
}

template <typename F>
bool Eventually(F condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

inline void ExpectAnswers(const ExpertReply& reply, const ExpertRequest& request) {
  ASSERT_TRUE(reply.status.ok()) << reply.status;
  EXPECT_TRUE(SameBytes(reply.rows, ComputeFakeReply(request).rows));
}

}  // namespace tandem

#endif  // TANDEM_TESTS_COMMON_TRANSPORT_LINK_CHECKS_H_
