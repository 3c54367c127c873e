#include "kernels/portable_trig.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>

namespace tandem::kernels {
namespace {

void ExpectNear(double angle) {
  const CosineAndSine got = PortableCosineAndSine(angle);
  EXPECT_NEAR(got.cosine, std::cos(angle), 2.3e-16) << angle;
  EXPECT_NEAR(got.sine, std::sin(angle), 2.3e-16) << angle;
}

TEST(PortableTrigTest, AgreesWithTheLibraryToTheLastPlace) {
  std::mt19937_64 random(1);
  for (double largest : {1e-6, 1.0, 100.0, 163840.0, 1048576.0}) {
    std::uniform_real_distribution<float> angles(0.0f, static_cast<float>(largest));
    for (int i = 0; i < 20000; ++i) ExpectNear(angles(random));
  }
}

TEST(PortableTrigTest, AtQuartersOfTheCircle) {
  EXPECT_EQ(PortableCosineAndSine(0.0).cosine, 1.0);
  EXPECT_EQ(PortableCosineAndSine(0.0).sine, 0.0);
  for (int quarter = 1; quarter < 600000; quarter += 997) {
    // The float nearest to it, and its neighbours: where the reduction loses most.
    const auto angle = static_cast<float>(quarter * 1.5707963267948966);
    ExpectNear(angle);
    ExpectNear(std::nextafter(angle, 0.0f));
    ExpectNear(std::nextafter(angle, 2e6f));
  }
}

// What the model's table takes of it.
TEST(PortableTrigTest, RoundedToF32ItIsTheLibrarys) {
  std::mt19937_64 random(2);
  std::uniform_real_distribution<float> angles(0.0f, 163840.0f);
  for (int i = 0; i < 100000; ++i) {
    const double angle = angles(random);
    const CosineAndSine got = PortableCosineAndSine(angle);
    ASSERT_EQ(static_cast<float>(got.cosine), static_cast<float>(std::cos(angle)));
    ASSERT_EQ(static_cast<float>(got.sine), static_cast<float>(std::sin(angle)));
  }
}

}  // namespace
}  // namespace tandem::kernels
