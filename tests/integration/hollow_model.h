// Checkpoints of any size that take no space: their weights are a hole in the file.
#ifndef TANDEM_TESTS_INTEGRATION_HOLLOW_MODEL_H_
#define TANDEM_TESTS_INTEGRATION_HOLLOW_MODEL_H_

#include <string>

#include "nlohmann/json.hpp"

namespace tandem::test {

// Makes the folder `dir`: TinyModel's config.json with `changes`, and weights of zeros.
void WriteHollowModel(const std::string& dir, const nlohmann::json& changes);

}  // namespace tandem::test

#endif  // TANDEM_TESTS_INTEGRATION_HOLLOW_MODEL_H_
