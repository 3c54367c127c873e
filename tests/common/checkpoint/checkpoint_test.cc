#include "common/checkpoint/checkpoint.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/checkpoint/digest.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/common/checkpoint/safetensors_writer.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kNorm[] = "model.layers.1.self_attn.kv_a_layernorm.weight";
constexpr char kExpert[] = "model.layers.2.mlp.experts.7.down_proj.weight";

ModelConfig SmallConfig() { return *ParseModelConfig(kSmallConfig, "small"); }

// kSmallConfig with one piece of its text replaced.
std::string SmallConfigWith(const std::string& from, const std::string& to) {
  std::string json = kSmallConfig;
  const size_t at = json.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return json.replace(at, from.size(), to);
}

RawTensor& Find(std::vector<RawTensor>& tensors, const std::string& name) {
  for (RawTensor& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  ADD_FAILURE() << name;
  return tensors.front();
}

void Remove(std::vector<RawTensor>& tensors, const std::string& name) {
  Find(tensors, name);
  std::erase_if(tensors, [&](const RawTensor& tensor) { return tensor.name == name; });
}

std::string Bytes(const TensorView& view) {
  return std::string(view.as<const char>(), view.bytes());
}

class CheckpointTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Checkpoint>> Open() { return Checkpoint::Open(dir_.path()); }

  const ScratchDir dir_;
  std::vector<RawTensor> tensors_ = RandomTensors(SmallConfig(), /*seed=*/1);
};

TEST_F(CheckpointTest, LoadsEveryTensorAsItWasWritten) {
  for (const int num_files : {1, 3}) {
    const ScratchDir dir;
    WriteCheckpoint(dir.path(), kSmallConfig, tensors_, num_files);
    const auto checkpoint = Checkpoint::Open(dir.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ((*checkpoint)->tensors().size(), tensors_.size());
    EXPECT_EQ((*checkpoint)->config().hidden_size, 32);
    uint64_t parameters = 0;
    for (const RawTensor& raw : tensors_) {
      const auto weight = (*checkpoint)->Load(raw.name, WeightFormat::kBF16);
      ASSERT_TRUE(weight.ok()) << weight.status();
      EXPECT_EQ(weight->view.dtype, Dtype::kBF16);
      ASSERT_EQ(weight->view.rank, static_cast<int>(raw.shape.size()));
      for (int i = 0; i < weight->view.rank; ++i) EXPECT_EQ(weight->view.dim(i), raw.shape[i]);
      EXPECT_EQ(Bytes(weight->view), raw.bytes) << raw.name;
      parameters += raw.bytes.size() / 2;
    }
    EXPECT_EQ((*checkpoint)->num_parameters(), parameters);
  }
}

TEST_F(CheckpointTest, ConvertsOnlyWhatTheModeCannotRead) {
  const struct {
    Dtype stored, mode, loaded;
  } cases[] = {
      {Dtype::kBF16, Dtype::kBF16, Dtype::kBF16}, {Dtype::kF16, Dtype::kBF16, Dtype::kBF16},
      {Dtype::kF32, Dtype::kBF16, Dtype::kBF16},  {Dtype::kBF16, Dtype::kF32, Dtype::kBF16},
      {Dtype::kF16, Dtype::kF32, Dtype::kF32},    {Dtype::kF32, Dtype::kF32, Dtype::kF32},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(absl::StrCat(DtypeName(c.stored), " in ", DtypeName(c.mode)));
    const ScratchDir dir;
    WriteRandomCheckpoint(dir.path(), kSmallConfig, /*seed=*/1, c.stored);
    const auto checkpoint = Checkpoint::Open(dir.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    std::vector<RawTensor> expected = RandomTensors(SmallConfig(), /*seed=*/1, c.loaded);
    for (const char* name : {kNorm, kExpert, "model.layers.1.mlp.gate.weight"}) {
      const auto weight = (*checkpoint)->Load(name, DefaultWeightFormat(c.mode));
      ASSERT_TRUE(weight.ok()) << weight.status();
      EXPECT_EQ(weight->view.dtype, c.loaded);
      EXPECT_EQ(Bytes(weight->view), Find(expected, name).bytes) << name;
      const auto outline = (*checkpoint)->Outline(name, DefaultWeightFormat(c.mode));
      ASSERT_TRUE(outline.ok()) << outline.status();
      EXPECT_EQ(outline->dtype, c.loaded);
      EXPECT_EQ(outline->shape, weight->view.shape);
      EXPECT_TRUE(outline->empty());
    }
  }
}

TEST_F(CheckpointTest, LoadsUnalignedData) {
  for (int padding = 1; padding < 4; ++padding) {
    WriteFile(dir_.File("config.json"), kSmallConfig);
    WriteFile(dir_.File("model.safetensors"), SafetensorsBytes(tensors_, padding));
    const auto checkpoint = Open();
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const auto weight = (*checkpoint)->Load(kExpert, WeightFormat::kF32);
    ASSERT_TRUE(weight.ok());
    EXPECT_EQ(Bytes(weight->view), Find(tensors_, kExpert).bytes);
  }
}

TEST_F(CheckpointTest, CountsOnlyWhatWasLoaded) {
  WriteCheckpoint(dir_.path(), kSmallConfig, tensors_);
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok());
  EXPECT_EQ((*checkpoint)->mapped_tensors(), 0);
  EXPECT_EQ((*checkpoint)->mapped_bytes(), 0);
  ASSERT_TRUE((*checkpoint)->Load(kExpert, WeightFormat::kBF16).ok());
  ASSERT_TRUE((*checkpoint)->Load(kNorm, WeightFormat::kBF16).ok());
  EXPECT_EQ((*checkpoint)->mapped_tensors(), 2);
  EXPECT_EQ((*checkpoint)->mapped_bytes(), 32 * 16 * 2 + 16 * 2);
}

TEST_F(CheckpointTest, WeightOutlivesCheckpointAndFile) {
  WriteCheckpoint(dir_.path(), kSmallConfig, tensors_);
  auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok());
  const OwnedTensor weight = *(*checkpoint)->Load(kExpert, WeightFormat::kBF16);
  checkpoint->reset();
  std::filesystem::remove(dir_.File("model.safetensors"));
  EXPECT_EQ(Bytes(weight.view), Find(tensors_, kExpert).bytes);
}

TEST_F(CheckpointTest, LoadsFromSeveralThreads) {
  WriteCheckpoint(dir_.path(), kSmallConfig, tensors_, /*num_files=*/2);
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (const RawTensor& raw : tensors_) {
        const auto weight = (*checkpoint)->Load(raw.name, WeightFormat::kBF16);
        EXPECT_TRUE(weight.ok() && Bytes(weight->view) == raw.bytes);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ((*checkpoint)->mapped_tensors(), static_cast<int64_t>(4 * tensors_.size()));
}

TEST_F(CheckpointTest, LoaderReportsRisingSharesUpToOne) {
  WriteCheckpoint(dir_.path(), kSmallConfig, tensors_);
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok());
  const auto expert = [](const std::string& name) {
    return absl::StrContains(name, ".mlp.experts.");
  };
  const int64_t total = TensorBytes(**checkpoint, expert);
  EXPECT_EQ(total, 2 * 8 * 3 * 32 * 16 * 2);
  std::vector<float> shares;
  CheckpointLoader loader(checkpoint->get(), WeightFormat::kBF16, total,
                          [&](float share) { shares.push_back(share); });
  for (const auto& [name, location] : (*checkpoint)->tensors()) {
    if (expert(name)) {
      ASSERT_TRUE(loader.Load(name).ok());
    }
  }
  EXPECT_EQ(shares.size(), 2u * 8 * 3);
  EXPECT_TRUE(std::is_sorted(shares.begin(), shares.end()));
  EXPECT_EQ(shares.back(), 1.0f);
  EXPECT_EQ((*checkpoint)->mapped_bytes(), total);
}

TEST_F(CheckpointTest, NamesATensorThatIsNotThere) {
  WriteCheckpoint(dir_.path(), kSmallConfig, tensors_);
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok());
  const auto weight = (*checkpoint)->Load("model.layers.9.norm", WeightFormat::kBF16);
  EXPECT_EQ(weight.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(weight.status().message()), HasSubstr("model.layers.9.norm"));
}

TEST_F(CheckpointTest, RefusesToLoadFromAFileThatHasShrunk) {
  WriteCheckpoint(dir_.path(), kSmallConfig, tensors_);
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok());
  std::filesystem::resize_file(dir_.File("model.safetensors"), 1000);
  EXPECT_EQ((*checkpoint)->Load("lm_head.weight", WeightFormat::kBF16).status().code(),
            absl::StatusCode::kDataLoss);
}

TEST_F(CheckpointTest, IgnoresUnknownTensorsAndLayersBeyondTheLast) {
  tensors_.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", "F64", {1}, "12345678"});
  tensors_.push_back({"model.layers.3.eh_proj.weight", "F8_E4M3", {1}, "1"});
  WriteCheckpoint(dir_.path(), kSmallConfig, tensors_);
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->tensors().size(), tensors_.size() - 2);
}

TEST_F(CheckpointTest, TiedEmbeddingsNeedNoHeadAndIgnoreOne) {
  const std::string tied =
      SmallConfigWith("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
  for (const bool head : {true, false}) {
    if (!head) Remove(tensors_, "lm_head.weight");
    WriteCheckpoint(dir_.path(), tied, tensors_);
    const auto checkpoint = Open();
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ((*checkpoint)->tensors().count("lm_head.weight"), 0u);
  }
}

TEST_F(CheckpointTest, OpensEachLayout) {
  const std::string variants[] = {
      SmallConfigWith("\"q_lora_rank\": null", "\"q_lora_rank\": 24"),
      SmallConfigWith("\"moe_layer_freq\": 1", "\"moe_layer_freq\": 2"),
      SmallConfigWith("\"first_k_dense_replace\": 1", "\"first_k_dense_replace\": 0"),
      SmallConfigWith("\"n_shared_experts\": 2", "\"n_shared_experts\": null"),
      SmallConfigWith("\"n_routed_experts\": 8", "\"n_routed_experts\": null"),
  };
  for (const std::string& config : variants) {
    const ScratchDir dir;
    WriteRandomCheckpoint(dir.path(), config, /*seed=*/2);
    const auto checkpoint = Checkpoint::Open(dir.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status() << config;
  }
}

TEST_F(CheckpointTest, AWholeSingleFileCountsBeforeAnIndex) {
  WriteCheckpoint(dir_.path(), kSmallConfig, tensors_);
  EXPECT_THAT((*Open())->warnings(), IsEmpty());
  WriteFile(dir_.File("model.safetensors.index.json"), R"({"weight_map":{}})");
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT((*checkpoint)->warnings(),
              ElementsAre(HasSubstr("model.safetensors is used, and the index beside it is not")));
}

TEST_F(CheckpointTest, AnIndexCountsBeforeAPartOfASingleFile) {
  WriteCheckpoint(dir_.path(), kSmallConfig, tensors_, /*num_files=*/2);
  std::vector<RawTensor> some = tensors_;
  Remove(some, kNorm);
  WriteFile(dir_.File("model.safetensors"), SafetensorsBytes(some));
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->tensors().size(), tensors_.size());
  EXPECT_THAT((*checkpoint)->warnings(),
              ElementsAre(AllOf(HasSubstr(kNorm), HasSubstr("the index beside it is used"))));
}

TEST_F(CheckpointTest, ATensorInTwoFilesIsTakenFromTheOneThatTheIndexNames) {
  WriteCheckpoint(dir_.path(), kSmallConfig, tensors_, /*num_files=*/2);
  const std::string first = dir_.File("model-00001-of-000002.safetensors");
  const auto entries = (*SafetensorsFile::Open(first))->entries();
  // The last tensor of the first file again, with other values, in the second.
  const std::string twice = entries.rbegin()->first;
  std::vector<RawTensor> second;
  for (const RawTensor& tensor : tensors_) {
    if (!entries.contains(tensor.name)) second.push_back(tensor);
  }
  second.push_back(Find(tensors_, twice));
  for (char& byte : second.back().bytes) byte = 0;
  WriteFile(dir_.File("model-00002-of-000002.safetensors"), SafetensorsBytes(second));
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto loaded = (*checkpoint)->Load(twice, WeightFormat::kBF16);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(Bytes(loaded->view), Find(tensors_, twice).bytes);
  EXPECT_THAT((*checkpoint)->warnings(),
              ElementsAre(AllOf(HasSubstr(twice), HasSubstr("00001-of-000002"),
                                HasSubstr("00002-of-000002"))));
}

TEST_F(CheckpointTest, TheExpertsOfALayerMayBeOneTensor) {
  const ModelConfig config = SmallConfig();
  WriteCheckpoint(dir_.path(), kSmallConfig, tensors_);
  const std::string digest = *CheckpointDigest(**Open());
  std::vector<RawTensor> fused = tensors_;
  for (int layer = 1; layer < config.num_layers; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".mlp.experts.");
    RawTensor gate_up{prefix + "gate_up_proj",
                      "BF16",
                      {config.num_experts, 2 * config.moe_intermediate_size, config.hidden_size},
                      ""};
    RawTensor down{prefix + "down_proj",
                   "BF16",
                   {config.num_experts, config.hidden_size, config.moe_intermediate_size},
                   ""};
    for (int e = 0; e < config.num_experts; ++e) {
      const auto take = [&](const char* projection, RawTensor* to) {
        const std::string name = absl::StrCat(prefix, e, ".", projection, ".weight");
        to->bytes += Find(fused, name).bytes;
        Remove(fused, name);
      };
      take("gate_proj", &gate_up);
      take("up_proj", &gate_up);
      take("down_proj", &down);
    }
    fused.push_back(gate_up);
    fused.push_back(down);
  }
  WriteCheckpoint(dir_.path(), kSmallConfig, fused);
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->tensors().size(), tensors_.size());
  for (const RawTensor& tensor : tensors_) {
    const auto loaded = (*checkpoint)->Load(tensor.name, WeightFormat::kBF16);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(Bytes(loaded->view), tensor.bytes) << tensor.name;
  }
  EXPECT_EQ(*CheckpointDigest(**checkpoint), digest);

  Find(fused, "model.layers.1.mlp.experts.down_proj").shape = {
      config.num_experts, config.moe_intermediate_size, config.hidden_size};
  WriteCheckpoint(dir_.path(), kSmallConfig, fused);
  const absl::Status transposed = Open().status();
  EXPECT_EQ(transposed.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(transposed.message()), HasSubstr("down_proj: expected shape"));
}

TEST_F(CheckpointTest, LoadingEndsWhenItIsToldTo) {
  WriteCheckpoint(dir_.path(), kSmallConfig, tensors_);
  std::atomic<bool> stop = false;
  const auto checkpoint = Checkpoint::Open(dir_.path(), &stop);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  CheckpointLoader loader(checkpoint->get(), WeightFormat::kBF16, 1, nullptr);
  EXPECT_TRUE(loader.Load(kNorm).ok());
  EXPECT_TRUE(CheckpointDigest(**checkpoint).ok());
  stop = true;
  EXPECT_EQ(loader.Load(kNorm).status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(CheckpointDigest(**checkpoint).status().code(), absl::StatusCode::kCancelled);
}

TEST_F(CheckpointTest, SaysThatAFileWasWrittenTo) {
  WriteCheckpoint(dir_.path(), kSmallConfig, tensors_, /*num_files=*/2);
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_TRUE((*checkpoint)->CheckUnchanged().ok());
  const std::string path = dir_.File("model-00002-of-000002.safetensors");
  std::filesystem::last_write_time(
      path, std::filesystem::file_time_type::clock::now() + std::chrono::seconds(5));
  const absl::Status changed = (*checkpoint)->CheckUnchanged();
  EXPECT_EQ(changed.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(changed.message()), HasSubstr("00002-of-000002.safetensors has been"));
  std::filesystem::resize_file(path, 100);
  EXPECT_THAT(std::string((*checkpoint)->CheckUnchanged().message()), HasSubstr("shorter"));
}

TEST_F(CheckpointTest, AConfigThatClaimsTooMuchCostsNoMemory) {
  // 800 million tensors: to list them before looking at the first would take 100 GB.
  std::string config = SmallConfigWith("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4096");
  config.replace(config.find("\"n_routed_experts\": 8"), 21, "\"n_routed_experts\": 65536");
  WriteCheckpoint(dir_.path(), config, tensors_);
  const auto checkpoint = Open();
  EXPECT_EQ(checkpoint.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(checkpoint.status().message()), HasSubstr("mlp.gate.weight"));
}

// Each case breaks a good checkpoint; the sentence must name what the case says.
struct BadCheckpoint {
  const char* name;
  void (*damage)(const ScratchDir& dir, std::vector<RawTensor>& tensors);
  absl::StatusCode code;
  std::vector<std::string> words;
};

void Rewrite(const ScratchDir& dir, const std::vector<RawTensor>& tensors, int num_files = 1) {
  std::filesystem::remove(dir.File("model.safetensors"));
  WriteCheckpoint(dir.path(), kSmallConfig, tensors, num_files);
}

// Writes shards whose index sends kNorm to `file`.
void RewriteIndex(const ScratchDir& dir, const std::vector<RawTensor>& tensors,
                  const std::string& file) {
  Rewrite(dir, tensors, /*num_files=*/2);
  const std::string path = dir.File("model.safetensors.index.json");
  std::string index = ReadFile(path);
  const size_t name = index.find(kNorm);
  const size_t begin = index.find(":\"", name) + 2;
  index.replace(begin, index.find('"', begin) - begin, file);
  WriteFile(path, index);
}

class BadCheckpointTest : public testing::TestWithParam<BadCheckpoint> {};

TEST_P(BadCheckpointTest, IsRefusedWithASentence) {
  const ScratchDir dir;
  std::vector<RawTensor> tensors = RandomTensors(SmallConfig(), /*seed=*/1);
  WriteCheckpoint(dir.path(), kSmallConfig, tensors);
  GetParam().damage(dir, tensors);
  const auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_FALSE(checkpoint.ok());
  EXPECT_EQ(checkpoint.status().code(), GetParam().code) << checkpoint.status();
  for (const std::string& word : GetParam().words) {
    EXPECT_THAT(std::string(checkpoint.status().message()), HasSubstr(word));
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, BadCheckpointTest,
    testing::ValuesIn(std::vector<BadCheckpoint>{
        {"NoConfig",
         [](const ScratchDir& dir, auto&) { std::filesystem::remove(dir.File("config.json")); },
         absl::StatusCode::kNotFound,
         {"config.json"}},
        {"LinkToNoWeights",
         [](const ScratchDir& dir, auto&) {
           std::filesystem::remove(dir.File("model.safetensors"));
           std::filesystem::create_symlink("nowhere", dir.File("model.safetensors"));
         },
         absl::StatusCode::kInvalidArgument,
         {"model.safetensors is a link to a file that is missing"}},
        {"NoWeights",
         [](const ScratchDir& dir, auto&) {
           std::filesystem::remove(dir.File("model.safetensors"));
         },
         absl::StatusCode::kNotFound,
         {"model.safetensors"}},
        {"TruncatedWeights",
         [](const ScratchDir& dir, auto&) {
           const std::string path = dir.File("model.safetensors");
           std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
         },
         absl::StatusCode::kInvalidArgument,
         {"model.safetensors", "lm_head.weight"}},
        {"MissingTensor",
         [](const ScratchDir& dir, auto& tensors) {
           Remove(tensors, kExpert);
           Rewrite(dir, tensors);
         },
         absl::StatusCode::kNotFound,
         {"model.safetensors", kExpert, "missing"}},
        {"WrongShape",
         [](const ScratchDir& dir, auto& tensors) {
           Find(tensors, kExpert).shape = {16, 32};
           Rewrite(dir, tensors);
         },
         absl::StatusCode::kInvalidArgument,
         {"model.safetensors", kExpert, "expected", "[32, 16]", "[16, 32]"}},
        {"WrongRank",
         [](const ScratchDir& dir, auto& tensors) {
           Find(tensors, kNorm).shape = {1, 16};
           Rewrite(dir, tensors);
         },
         absl::StatusCode::kInvalidArgument,
         {"model.safetensors", kNorm, "[16]", "[1, 16]"}},
        {"DtypeThatIsNoFloat",
         [](const ScratchDir& dir, auto& tensors) {
           Find(tensors, kNorm).dtype = "I16";
           Rewrite(dir, tensors);
         },
         absl::StatusCode::kUnimplemented,
         {"model.safetensors", kNorm, "BF16, F16 or F32", "I16"}},
        {"IndexIsNoJson",
         [](const ScratchDir& dir, auto& tensors) {
           Rewrite(dir, tensors, 2);
           WriteFile(dir.File("model.safetensors.index.json"), "{\"weight_map\":{\"a\":");
         },
         absl::StatusCode::kInvalidArgument,
         {"model.safetensors.index.json"}},
        {"IndexWithoutMap",
         [](const ScratchDir& dir, auto& tensors) {
           Rewrite(dir, tensors, 2);
           WriteFile(dir.File("model.safetensors.index.json"), "{\"metadata\":{}}");
         },
         absl::StatusCode::kInvalidArgument,
         {"model.safetensors.index.json", "weight_map"}},
        {"IndexLacksATensor",
         [](const ScratchDir& dir, auto& tensors) {
           Remove(tensors, kNorm);
           Rewrite(dir, tensors, 2);
         },
         absl::StatusCode::kNotFound,
         {"model.safetensors.index.json", kNorm}},
        {"IndexNamesAnAbsentFile",
         [](const ScratchDir& dir, auto& tensors) {
           RewriteIndex(dir, tensors, "absent.safetensors");
         },
         absl::StatusCode::kNotFound,
         {"absent.safetensors"}},
        {"IndexNamesTheWrongFile",
         [](const ScratchDir& dir, auto& tensors) {
           WriteFile(dir.File("other.safetensors"), SafetensorsBytes(std::vector<RawTensor>()));
           RewriteIndex(dir, tensors, "other.safetensors");
         },
         absl::StatusCode::kNotFound,
         {"other.safetensors", kNorm, "missing"}},
        {"IndexLeavesTheFolder",
         [](const ScratchDir& dir, auto& tensors) {
           RewriteIndex(dir, tensors, "../model.safetensors");
         },
         absl::StatusCode::kInvalidArgument,
         {"model.safetensors.index.json", "../model.safetensors"}},
        {"IndexNamesAnAbsolutePath",
         [](const ScratchDir& dir, auto& tensors) { RewriteIndex(dir, tensors, "/etc/passwd"); },
         absl::StatusCode::kInvalidArgument,
         {"model.safetensors.index.json", "/etc/passwd"}},
        {"IndexNamesTheFolderItself",
         [](const ScratchDir& dir, auto& tensors) { RewriteIndex(dir, tensors, "."); },
         absl::StatusCode::kInvalidArgument,
         {"model.safetensors.index.json"}},
    }),
    [](const auto& info) { return info.param.name; });

TEST(FormatOfTest, IntegersAreForTheLargeMatrices) {
  const std::string layer = "model.layers.3.";
  for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    for (const std::string& name :
         {layer + "mlp.experts.7.gate_proj.weight", layer + "mlp.shared_experts.down_proj.weight",
          layer + "self_attn.q_proj.weight", layer + "self_attn.q_b_proj.weight",
          layer + "self_attn.o_proj.weight", std::string("lm_head.weight")}) {
      EXPECT_EQ(FormatOf(name, format), format) << name;
    }
    EXPECT_EQ(FormatOf(layer + "self_attn.kv_a_proj_with_mqa.weight", format), WeightFormat::kInt8);
    EXPECT_EQ(FormatOf(layer + "self_attn.kv_b_proj.weight", format), WeightFormat::kInt8);
    for (const std::string& name :
         {layer + "self_attn.kv_a_layernorm.weight", layer + "input_layernorm.weight",
          layer + "mlp.gate.weight", std::string("model.embed_tokens.weight"),
          std::string("model.norm.weight")}) {
      EXPECT_EQ(FormatOf(name, format), WeightFormat::kF32) << name;
    }
  }
  EXPECT_EQ(FormatOf("lm_head.weight", WeightFormat::kBF16), WeightFormat::kBF16);
}

TEST(GoldenCheckpointTest, TheCommittedModelOpensAndLoads) {
  const auto checkpoint = Checkpoint::Open(absl::StrCat(TANDEM_SOURCE_DIR, "/tests/golden/tiny"));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const auto& [tensor, location] : (*checkpoint)->tensors()) {
    EXPECT_TRUE((*checkpoint)->Load(tensor, WeightFormat::kF32).ok()) << tensor;
  }
}

TEST(GoldenCheckpointTest, EveryGoldenModelOpensAndLoads) {
  const std::string root = absl::StrCat(TANDEM_SOURCE_DIR, "/../shared/golden/");
  if (!std::filesystem::exists(root)) GTEST_SKIP() << root << " is not here";
  for (const char* name :
       {"hf_tiny_v2lite", "hf_tiny_q_lora", "hf_tiny_plain", "hf_tiny_two_mscales"}) {
    const auto checkpoint = Checkpoint::Open(root + name);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    for (const auto& [tensor, location] : (*checkpoint)->tensors()) {
      EXPECT_TRUE((*checkpoint)->Load(tensor, WeightFormat::kBF16).ok()) << name << " " << tensor;
    }
  }
}

}  // namespace
}  // namespace tandem
