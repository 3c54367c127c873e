// The attention seam's plain structs as protobuf messages and back. What comes from the network is
// checked for form only (known kinds, whole floats); its meaning is the worker's to check.
#ifndef TANDEM_COMMON_TRANSPORT_ATTENTION_PROTO_H_
#define TANDEM_COMMON_TRANSPORT_ATTENTION_PROTO_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/transport/attention_link.h"
#include "proto/attention.pb.h"

namespace tandem {

void ToProto(const SequenceSpec& spec, v1::OpenSequence* out);
void ToProto(const Step& step, v1::Step* out);
void ToProto(const StepResult& result, v1::StepResult* out);
void ToProto(const AttentionWorkerInfo& info, v1::AttentionWelcome* out);

SequenceSpec FromProto(const v1::OpenSequence& spec);
// INVALID_ARGUMENT for an output of an unknown kind.
absl::StatusOr<Step> FromProto(const v1::Step& step);
// DATA_LOSS for a row of an unknown kind, a broken row of logits or an unknown status code.
absl::StatusOr<StepResult> FromProto(const v1::StepResult& result);
AttentionWorkerInfo FromProto(const v1::AttentionWelcome& info);

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_ATTENTION_PROTO_H_
