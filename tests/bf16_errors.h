// How far a bf16 run is from f32, held against the reference's own bf16 run.
//
// Rounding errors go different ways, and now and then one chooses another expert, which costs ten
// times as much as all the others: in 1 to 10 of 100 positions, in the reference too, by chance not
// in the same ones. A sum over positions hence says little (with nothing wrong but another order of
// additions, a prompt's was 0.5 to 2 times the reference's). The median does not see those experts
// (over five checkpoints and two orders of additions: 0.92 to 1.02 times the reference's), and a
// rounding that is added moves it; how many they are is bounded apart.
#ifndef TANDEM_TESTS_BF16_ERRORS_H_
#define TANDEM_TESTS_BF16_ERRORS_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/source_path.h"

namespace tandem::test {

// The reference's error at each position, prompt after prompt (tests/golden/README.md).
// `prompts`: those whose errors count. Requires that `model` is in the file.
inline std::vector<double> ReferenceBF16Errors(const std::string& model,
                                               const std::vector<std::string>& prompts) {
  std::ifstream file(SourcePath("tests/golden/bf16_errors.json"));
  const nlohmann::json of_prompts = nlohmann::json::parse(file).at(model);
  std::vector<double> errors;
  for (const std::string& prompt : prompts) {
    for (const nlohmann::json& error : of_prompts.at(prompt)) errors.push_back(error);
  }
  return errors;
}

// |found - expected| / |expected|, Euclidean, of each of `positions` rows of as many logits.
inline std::vector<double> PositionErrors(const std::vector<float>& found,
                                          const std::vector<float>& expected, size_t positions) {
  const size_t width = expected.size() / positions;
  std::vector<double> errors(positions, INFINITY);
  if (found.size() != expected.size()) return errors;
  for (size_t i = 0; i < positions; ++i) {
    double difference = 0, norm = 0;
    for (size_t k = i * width; k < (i + 1) * width; ++k) {
      difference += (double{found[k]} - expected[k]) * (double{found[k]} - expected[k]);
      norm += double{expected[k]} * expected[k];
    }
    errors[i] = std::sqrt(difference / norm);
  }
  return errors;
}

// The same over all logits together.
inline double RelativeError(const std::vector<float>& found, const std::vector<float>& expected) {
  return PositionErrors(found, expected, 1)[0];
}

inline double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// `errors`: of every position of `prompts`, prompt after prompt. `ratio`: to the reference's
// median, at most.
inline void ExpectNearAsTheReference(const std::vector<double>& errors, const std::string& model,
                                     const std::vector<std::string>& prompts, double ratio = 1.06) {
  const std::vector<double> reference = ReferenceBF16Errors(model, prompts);
  ASSERT_EQ(errors.size(), reference.size());
  const double median = Median(reference);
  const auto far = [&](const std::vector<double>& of) {
    return std::count_if(of.begin(), of.end(), [&](double error) { return error > 3 * median; });
  };
  EXPECT_LE(Median(errors), ratio * median);
  EXPECT_LE(far(errors), 2 * far(reference) + 4) << "of " << errors.size();
  testing::Test::RecordProperty("ratio", std::to_string(Median(errors) / median));
  std::printf("%s: bf16 error %.3g, %.3f times the reference's; far off %td and %td of %zu\n",
              model.c_str(), Median(errors), Median(errors) / median, far(errors), far(reference),
              errors.size());
}

}  // namespace tandem::test

#endif  // TANDEM_TESTS_BF16_ERRORS_H_
