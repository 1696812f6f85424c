// What each reason means to people, and what they can do.

interface Meaning {
  label: string;
  advice: string;
}

const REPORT = "A defect of the student's client, or bytes changed on the way: update it, and use TLS.";

const MEANINGS: Record<string, Meaning> = {
  REASON_PROTOCOL_VIOLATION: { label: "Protocol", advice: REPORT },
  REASON_FIELD_INVALID: { label: "Field", advice: "The message names the field and what was expected: change it." },
  REASON_TENSOR_INVALID: { label: "Tensor", advice: REPORT },
  REASON_SHAPE_MISMATCH: {
    label: "Shape",
    advice: "Make the student's inputs and message_dim agree with what `preceptor describe` says.",
  },
  REASON_DATA_TYPE_MISMATCH: { label: "Data type", advice: "Send the inputs as the types of `preceptor describe`." },
  REASON_NOT_FINITE: {
    label: "Not finite",
    advice: "The student diverged: lower its learning rate, clip gradients, or look at its data.",
  },
  REASON_LIMIT_EXCEEDED: {
    label: "Limit",
    advice: "Send less at once (micro_batch_size, shorter inputs), or have the operator raise `limits`.",
  },
  REASON_TURN_CONFLICT: { label: "Turn conflict", advice: REPORT },
  REASON_TURN_UNKNOWN: {
    label: "Turn not kept",
    advice: "The client sends it again by itself. Often: raise `limits.max_kept_bytes`, or keep fewer turns open.",
  },
  REASON_CODEC_UNKNOWN: { label: "Codec not kept", advice: "The client sends it again by itself." },
  REASON_CODEC_CONFLICT: { label: "Codec conflict", advice: REPORT },
  REASON_UNSUPPORTED: {
    label: "Unsupported",
    advice: "This teacher can't do it: choose other losses or another reading; `preceptor describe` says what it can.",
  },
  REASON_TEACHER_CHANGED: {
    label: "Teacher changed",
    advice: "Another model is served under this name: start the run again, or serve the old one under its own.",
  },
  REASON_OVERLOADED: {
    label: "Overloaded",
    advice: "The client waits and tries again. Often: more replicas, a larger weight, or smaller turns.",
  },
  REASON_INTERNAL: {
    label: "Failed",
    advice: "The service failed; its log has the cause under the conversation's name.",
  },
  REASON_DRAINING: { label: "Draining", advice: "None: the client moves to another replica by itself." },
  REASON_ACCESS_DENIED: {
    label: "No access",
    advice: "Look at the token: expired, revoked, or for another teacher? `preceptor tenant list` says.",
  },
};

export function meaning(reason: string): Meaning {
  return MEANINGS[reason] ?? { label: reason.replace("REASON_", "").toLowerCase() || "Refused", advice: "" };
}
