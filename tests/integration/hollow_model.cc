#include "tests/integration/hollow_model.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "common/checkpoint/tensor_table.h"
#include "common/model_config.h"
#include "tests/integration/deployment.h"

namespace tandem::test {

void WriteHollowModel(const std::string& dir, const nlohmann::json& changes) {
  std::filesystem::create_directory(dir);
  nlohmann::json config = nlohmann::json::parse(std::ifstream(TinyModel() + "/config.json"));
  config.update(changes);
  std::ofstream(dir + "/config.json") << config;
  const auto parsed = LoadModelConfig(dir);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  nlohmann::json header;
  int64_t end = 0;
  ASSERT_TRUE(
      ForEachNeededTensor(*parsed, [&](const std::string& name, const TensorShape& shape) {
        int64_t bytes = 2;
        for (const int64_t dim : shape) bytes *= dim;
        header[name] = {{"dtype", "BF16"}, {"shape", shape}, {"data_offsets", {end, end + bytes}}};
        end += bytes;
        return absl::OkStatus();
      }).ok());
  const std::string text = header.dump();
  const uint64_t length = text.size();
  const std::string path = dir + "/model.safetensors";
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(&length), sizeof(length))
      .write(text.data(), static_cast<std::streamsize>(length));
  std::filesystem::resize_file(path, 8 + length + end);
}

}  // namespace tandem::test
