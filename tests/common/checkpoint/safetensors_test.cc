#include "common/checkpoint/safetensors.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/common/checkpoint/safetensors_writer.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Key;
using ::testing::UnorderedElementsAre;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

std::string Tensor(const std::string& name, const std::string& shape, int begin, int end,
                   const std::string& dtype = "F32") {
  return absl::StrCat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":", shape,
                      ",\"data_offsets\":[", begin, ",", end, "]}");
}

std::string Header(const std::vector<std::string>& tensors) {
  return absl::StrCat("{", absl::StrJoin(tensors, ","), "}");
}

struct BadHeader {
  const char* name;
  std::string json;
  uint64_t data_bytes;
  absl::StatusCode code;
  std::string message;  // a part of it
};

class BadHeaderTest : public testing::TestWithParam<BadHeader> {};

TEST_P(BadHeaderTest, IsRefusedByName) {
  const auto entries = ParseSafetensorsHeader(GetParam().json, GetParam().data_bytes);
  ASSERT_FALSE(entries.ok());
  EXPECT_EQ(entries.status().code(), GetParam().code) << entries.status();
  EXPECT_THAT(std::string(entries.status().message()), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadHeaderTest,
    testing::ValuesIn(std::vector<BadHeader>{
        {"Empty", "", 0, kInvalid, "begin with {"},
        {"LeadingSpace", " {}", 0, kInvalid, "begin with {"},
        {"Array", "[]", 0, kInvalid, "begin with {"},
        {"BrokenJson", "{\"a\":", 0, kInvalid, ""},
        {"TrailingText", "{} x", 0, kInvalid, ""},
        {"InvalidUtf8", "{\"\xff\":{}}", 0, kInvalid, ""},
        {"HugeNumber", "{\"a\":1e999}", 0, kInvalid, ""},
        {"NulByte", std::string("{}\0{", 4), 0, kInvalid, "NUL"},
        {"FieldTwice",
         "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
         kInvalid, "tensor a has dtype twice"},
        {"UnknownField", "{\"a\":{\"dtype\":\"F32\",\"strides\":[1]}}", 4, kInvalid, "strides"},
        {"AbsurdDimension",
         Header({Tensor("a", absl::StrCat("[", std::string(200, '1'), "]"), 0, 4)}), 4, kInvalid,
         "tensor a"},
        {"AbsurdRank",
         Header({Tensor("a", absl::StrCat("[", absl::StrJoin(std::vector<int>(100, 1), ","), "]"),
                        0, 4)}),
         4, kInvalid, "tensor a: shape"},
        {"DeepNesting", "{\"a\":" + std::string(100000, '['), 0, kInvalid, ""},
        {"DuplicateTensor", Header({Tensor("a", "[1]", 0, 4), Tensor("a", "[1]", 4, 8)}), 8,
         kInvalid, "\"a\" twice"},
        {"MetadataNotStrings", "{\"__metadata__\":{\"n\":1}}", 0, kInvalid, "__metadata__"},
        {"MetadataNotObject", "{\"__metadata__\":[]}", 0, kInvalid, "__metadata__"},
        {"EntryNotObject", "{\"a\":3}", 0, kInvalid, "tensor a"},
        {"NoDtype", "{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, kInvalid, "tensor a"},
        {"NoShape", "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, kInvalid, "tensor a"},
        {"NoOffsets", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, kInvalid, "tensor a"},
        {"DtypeNotString", "{\"a\":{\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
         kInvalid, "tensor a"},
        {"ThreeOffsets", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,4]}}", 4,
         kInvalid, "tensor a"},
        {"UnknownDtypeOutOfRange", Header({Tensor("a", "[1]", 0, 5, "F6")}), 4, kInvalid,
         "tensor a"},
        {"NegativeDimension", Header({Tensor("a", "[-1]", 0, 4)}), 4, kInvalid, "tensor a"},
        {"FractionalDimension", Header({Tensor("a", "[1.5]", 0, 4)}), 4, kInvalid, "tensor a"},
        // Both come to 0 bytes in 64 bits.
        {"ShapeProductOverflows", Header({Tensor("a", "[4294967296,4294967296]", 0, 0)}), 0,
         kInvalid, "overflows"},
        {"ShapeByteCountOverflows", Header({Tensor("a", "[4611686018427387904]", 0, 0)}), 0,
         kInvalid, "overflows"},
        {"DimensionBeyondInt64", Header({Tensor("a", "[0,18446744073709551615]", 0, 0)}), 0,
         kInvalid, "tensor a"},
        {"EndBeforeBegin", Header({Tensor("a", "[1]", 4, 0)}), 4, kInvalid, "tensor a"},
        {"BeyondTheData", Header({Tensor("a", "[2]", 0, 8)}), 4, kInvalid, "tensor a"},
        {"TooFewBytes", Header({Tensor("a", "[3]", 0, 8)}), 8, kInvalid, "tensor a"},
        {"TooManyBytes", Header({Tensor("a", "[1]", 0, 8)}), 8, kInvalid, "tensor a"},
        {"Overlap", Header({Tensor("a", "[2]", 0, 8), Tensor("b", "[2]", 4, 12)}), 12, kInvalid,
         "tensor b"},
        {"HoleBetween", Header({Tensor("a", "[1]", 0, 4), Tensor("b", "[1]", 8, 12)}), 12, kInvalid,
         "tensor b"},
        {"HoleAtTheBeginning", Header({Tensor("a", "[1]", 4, 8)}), 8, kInvalid, "tensor a"},
        {"DataLeftOver", Header({Tensor("a", "[1]", 0, 4)}), 8, kInvalid, "4 bytes"},
    }),
    [](const auto& info) { return info.param.name; });

TEST(SafetensorsHeaderTest, AcceptsScalarsEmptyTensorsMetadataAndPadding) {
  const auto entries = ParseSafetensorsHeader(
      absl::StrCat(Header({"\"__metadata__\":{\"format\":\"pt\"}", Tensor("scalar", "[]", 0, 4),
                           Tensor("none", "[0,7]", 4, 4), Tensor("halves", "[2,3]", 4, 16, "F16")}),
                   "    "),
      16);
  ASSERT_TRUE(entries.ok()) << entries.status();
  EXPECT_THAT(*entries, UnorderedElementsAre(Key("scalar"), Key("none"), Key("halves")));
  EXPECT_TRUE(entries->at("scalar").shape.empty());
  EXPECT_EQ(entries->at("none").begin, entries->at("none").end);
  EXPECT_THAT(entries->at("halves").shape, ElementsAre(2, 3));
  EXPECT_EQ(entries->at("halves").dtype, "F16");
}

TEST(SafetensorsHeaderTest, KnowsEveryDtypeAndItsSize) {
  const std::pair<const char*, int> dtypes[] = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
      {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8}};
  for (const auto& [dtype, size] : dtypes) {
    const std::string header = Header({Tensor("a", "[3]", 0, 3 * size, dtype)});
    EXPECT_TRUE(ParseSafetensorsHeader(header, 3 * size).ok()) << dtype;
  }
}

TEST(SafetensorsHeaderTest, KeepsTensorsOfDtypesThatItDoesNotKnow) {
  const auto entries = ParseSafetensorsHeader(
      Header({Tensor("a", "[16]", 0, 12, "F6"), Tensor("b", "[1]", 12, 16)}), 16);
  ASSERT_TRUE(entries.ok()) << entries.status();
  EXPECT_EQ(entries->at("a").dtype, "F6");
  EXPECT_EQ(entries->at("a").end, 12u);
}

TEST(SafetensorsHeaderTest, AcceptsTensorsInAnyOrder) {
  EXPECT_TRUE(
      ParseSafetensorsHeader(Header({Tensor("z", "[1]", 0, 4), Tensor("a", "[1]", 4, 8)}), 8).ok());
  EXPECT_TRUE(
      ParseSafetensorsHeader(Header({Tensor("a", "[1]", 4, 8), Tensor("z", "[1]", 0, 4)}), 8).ok());
  EXPECT_TRUE(ParseSafetensorsHeader("{}", 0).ok());
}

class SafetensorsFileTest : public testing::Test {
 protected:
  absl::StatusOr<std::shared_ptr<const SafetensorsFile>> Open(const std::string& content) {
    WriteFile(path_, content);
    return SafetensorsFile::Open(path_);
  }

  const ScratchDir dir_;
  const std::string path_ = dir_.File("weights.safetensors");
  const std::vector<RawTensor> tensors_ = {{"a", "F32", {1}, EncodeElement(1.5f, Dtype::kF32)},
                                           {"none", "BF16", {0}, ""},
                                           {"b", "BF16", {1}, EncodeElement(-2, Dtype::kBF16)}};
};

TEST_F(SafetensorsFileTest, ReadsAndMapsAtEveryAlignment) {
  for (int padding = 0; padding < 8; ++padding) {
    const auto file = Open(SafetensorsBytes(tensors_, padding));
    ASSERT_TRUE(file.ok()) << file.status();
    const SafetensorsEntry& a = (*file)->entries().at("a");
    const auto mapped = (*file)->Map(a.begin, a.end);
    ASSERT_TRUE(mapped.ok()) << mapped.status();
    float value = 0;
    std::memcpy(&value, mapped->get(), sizeof(value));
    EXPECT_EQ(value, 1.5f);
    value = 0;
    ASSERT_TRUE((*file)->Read(a.begin, sizeof(value), &value).ok());
    EXPECT_EQ(value, 1.5f);
  }
}

// What was read just now is, and what the system has let go of since is not.
TEST_F(SafetensorsFileTest, KnowsWhatIsInMemory) {
  const std::string values(1 << 20, 'x');
  const auto file = Open(SafetensorsBytes({{"a", "U8", {1 << 20}, values}}));
  ASSERT_TRUE(file.ok()) << file.status();
  const SafetensorsEntry& a = (*file)->entries().at("a");
  std::string read(values.size(), ' ');
  ASSERT_TRUE((*file)->Read(a.begin, read.size(), read.data()).ok());
  if (!(*file)->IsInMemory(a.begin, a.end)) GTEST_SKIP() << "this file system does not say";
  EXPECT_TRUE((*file)->IsInMemory(a.begin, a.begin));
  const int fd = open(path_.c_str(), O_RDONLY);
  struct statfs system;
  ASSERT_EQ(fstatfs(fd, &system), 0);
  if (system.f_type != TMPFS_MAGIC) {
    fsync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    EXPECT_FALSE((*file)->IsInMemory(a.begin, a.end));
  }
  close(fd);
}

TEST_F(SafetensorsFileTest, MapsRangesBeyondTheFirstPage) {
  std::string bytes(3 * 4096, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i / 7);
  const auto size = static_cast<int64_t>(bytes.size());
  const auto file = Open(SafetensorsBytes({{"a", "U8", {size}, bytes}}, 3));
  ASSERT_TRUE(file.ok()) << file.status();
  const SafetensorsEntry& a = (*file)->entries().at("a");
  for (const uint64_t offset : {0, 1, 4000, 4096, 8000, 12287}) {
    const auto mapped = (*file)->Map(a.begin + offset, a.end);
    ASSERT_TRUE(mapped.ok());
    EXPECT_EQ(0, std::memcmp(mapped->get(), bytes.data() + offset, bytes.size() - offset));
  }
}

TEST_F(SafetensorsFileTest, MapsATensorWithoutElements) {
  const auto file = Open(SafetensorsBytes(tensors_));
  ASSERT_TRUE(file.ok()) << file.status();
  const SafetensorsEntry& none = (*file)->entries().at("none");
  const auto mapped = (*file)->Map(none.begin, none.end);
  ASSERT_TRUE(mapped.ok());
  EXPECT_NE(mapped->get(), nullptr);
}

TEST_F(SafetensorsFileTest, MappingOutlivesTheFile) {
  auto file = Open(SafetensorsBytes(tensors_));
  ASSERT_TRUE(file.ok());
  const SafetensorsEntry a = (*file)->entries().at("a");
  const auto mapped = *(*file)->Map(a.begin, a.end);
  file->reset();
  std::filesystem::remove(path_);
  float value = 0;
  std::memcpy(&value, mapped.get(), sizeof(value));
  EXPECT_EQ(value, 1.5f);
}

TEST_F(SafetensorsFileTest, RefusesToMapOrReadWhatWasCutOffSince) {
  const auto file = Open(SafetensorsBytes(tensors_));
  ASSERT_TRUE(file.ok());
  const SafetensorsEntry& b = (*file)->entries().at("b");
  std::filesystem::resize_file(path_, b.end - 1);
  EXPECT_EQ((*file)->Map(b.begin, b.end).status().code(), absl::StatusCode::kDataLoss);
  uint16_t value;
  EXPECT_EQ((*file)->Read(b.begin, sizeof(value), &value).code(), absl::StatusCode::kDataLoss);
}

TEST_F(SafetensorsFileTest, RefusesEveryTruncation) {
  const std::string whole = SafetensorsBytes(tensors_);
  for (size_t size = 0; size < whole.size(); ++size) {
    const auto file = Open(whole.substr(0, size));
    ASSERT_FALSE(file.ok()) << size;
    EXPECT_EQ(file.status().code(), kInvalid);
    EXPECT_THAT(std::string(file.status().message()), HasSubstr(path_));
  }
}

TEST_F(SafetensorsFileTest, SurvivesEveryFlippedByteOfTheHeader) {
  const std::string whole = SafetensorsBytes(tensors_);
  for (size_t i = 0; i + 6 < whole.size(); ++i) {
    for (const int flip : {0x01, 0x20, 0x80, 0xff}) {
      std::string broken = whole;
      broken[i] = static_cast<char>(broken[i] ^ flip);
      const auto file = Open(broken);
      if (file.ok()) continue;  // a name may have any letters
      EXPECT_FALSE(file.status().message().empty());
    }
  }
}

TEST_F(SafetensorsFileTest, RefusesOversizedHeaders) {
  for (const uint64_t length : {uint64_t{100'000'001}, uint64_t{1} << 63, ~uint64_t{0}}) {
    std::string content = SafetensorsBytes(tensors_);
    std::memcpy(content.data(), &length, sizeof(length));
    const auto file = Open(content);
    ASSERT_FALSE(file.ok());
    EXPECT_THAT(std::string(file.status().message()),
                AllOf(HasSubstr(path_), HasSubstr(absl::StrCat(length)), HasSubstr("100000000")));
  }
}

TEST_F(SafetensorsFileTest, RefusesAHeaderLongerThanTheFile) {
  std::string content = SafetensorsBytes(tensors_);
  const uint64_t length = content.size();
  std::memcpy(content.data(), &length, sizeof(length));
  EXPECT_EQ(Open(content).status().code(), kInvalid);
}

TEST_F(SafetensorsFileTest, NamesAMissingFileAndAFolder) {
  const auto missing = SafetensorsFile::Open(dir_.File("absent"));
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("absent"));
  EXPECT_EQ(SafetensorsFile::Open(dir_.path()).status().code(), kInvalid);
}

TEST_F(SafetensorsFileTest, CallsAGitLfsPointerByItsName) {
  const auto pointer = Open(
      "version https://git-lfs.github.com/spec/v1\noid "
      "sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f"
      "32b1258daaa5e2ca24d17e2393\nsize 12345\n");
  EXPECT_EQ(pointer.status().code(), kInvalid);
  EXPECT_THAT(std::string(pointer.status().message()),
              AllOf(HasSubstr(path_), HasSubstr("is a git-lfs pointer")));
}

}  // namespace
}  // namespace tandem
