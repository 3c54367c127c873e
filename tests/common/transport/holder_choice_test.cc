#include "common/transport/holder_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <vector>

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

// How many of the experts each worker was given.
std::map<WorkerId, int> Shares(const std::map<int32_t, WorkerId>& chosen) {
  std::map<WorkerId, int> shares;
  for (const auto& [expert, worker] : chosen) ++shares[worker];
  return shares;
}

TEST(ChooseHoldersTest, ExpertsOfOneHolderComeFirst) {
  // The two that only worker 1 has are as much as the four others, whatever their order.
  EXPECT_THAT(ChooseHolders({{0, 9, {1, 2}},
                             {1, 9, {1}},
                             {2, 9, {1, 2}},
                             {3, 9, {1, 2}},
                             {4, 9, {1}},
                             {5, 9, {1, 2}}},
                            {}, 0),
              ElementsAre(Pair(0, ::testing::_), Pair(1, 1), Pair(2, ::testing::_),
                          Pair(3, ::testing::_), Pair(4, 1), Pair(5, ::testing::_)));
  EXPECT_THAT(
      Shares(ChooseHolders({{0, 9, {1, 2}}, {1, 9, {1}}, {2, 9, {1, 2}}, {4, 9, {1}}}, {}, 0)),
      ElementsAre(Pair(1, 2), Pair(2, 2)));
}

TEST(ChooseHoldersTest, ThenThoseWithTheMostRoutes) {
  // 100 on one side, 60 and 40 on the other: only so is nobody given more than 100 routes.
  const auto chosen = ChooseHolders({{0, 40, {1, 2}}, {1, 60, {1, 2}}, {2, 100, {1, 2}}}, {}, 0);
  EXPECT_EQ(chosen.at(0), chosen.at(1));
  EXPECT_NE(chosen.at(0), chosen.at(2));
}

TEST(ChooseHoldersTest, WorkThatIsOutCounts) {
  const int64_t two_experts = PartWork(2, 2);
  EXPECT_THAT(ChooseHolders({{0, 1, {1, 2}}, {1, 1, {1, 2}}}, {{1, two_experts}}, 0),
              ElementsAre(Pair(0, 2), Pair(1, 2)));
  EXPECT_THAT(Shares(ChooseHolders({{0, 1, {1, 2}}, {1, 1, {1, 2}}, {2, 1, {1, 2}}, {3, 1, {1, 2}}},
                                   {{2, two_experts}}, 0)),
              ElementsAre(Pair(1, 3), Pair(2, 1)));
}

TEST(ChooseHoldersTest, AnExpertOfFewRoutesCostsTheReadingOfItsWeights) {
  // 40 routes to one expert are less work than a route to each of four others.
  std::vector<ExpertDemand> demands = {{0, 40, {1, 2}}};
  for (int e = 1; e <= 5; ++e) demands.push_back({e, 1, {1, 2}});
  EXPECT_THAT(Shares(ChooseHolders(demands, {}, 0)), ElementsAre(Pair(1, 2), Pair(2, 4)));
}

TEST(ChooseHoldersTest, EqualHoldersAreTakenInTurnByDifferentSenders) {
  std::map<WorkerId, int> first;
  for (uint64_t sender = 0; sender < 30; ++sender) {
    ++first[ChooseHolders({{7, 1, {1, 2, 3}}}, {}, sender).at(7)];
  }
  EXPECT_THAT(first, ElementsAre(Pair(1, 10), Pair(2, 10), Pair(3, 10)));
}

TEST(ChooseHoldersTest, TheOrderOfTheDemandsDecidesNothing) {
  std::vector<ExpertDemand> demands;
  for (int e = 0; e < 12; ++e) demands.push_back({e, e % 3, {1, 2, 3}});
  const auto chosen = ChooseHolders(demands, {{2, 5}}, 77);
  std::reverse(demands.begin(), demands.end());
  EXPECT_EQ(ChooseHolders(demands, {{2, 5}}, 77), chosen);
}

}  // namespace
}  // namespace tandem
