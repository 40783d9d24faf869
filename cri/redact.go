package cri

import (
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// maxPayload bounds the text of a message in the log, in bytes.
const maxPayload = 16 << 10

// redacted is the text of a message in which secrets are replaced: fields that
// the API marks debug_redact, and the values of environment variables, which
// the API does not mark and which kubelet fills from Secrets.
func redacted(m proto.Message) string {
	m = proto.Clone(m)
	redact(m.ProtoReflect())
	text := prototext.MarshalOptions{}.Format(m)
	if len(text) > maxPayload {
		text = text[:maxPayload] + "..."
	}
	return text
}

func redact(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case secret(f) && f.Kind() == protoreflect.StringKind && !f.IsList():
			m.Set(f, protoreflect.ValueOfString("[redacted]"))
		case secret(f) && f.Kind() == protoreflect.BytesKind && !f.IsList():
			m.Set(f, protoreflect.ValueOfBytes([]byte("[redacted]")))
		case secret(f):
			m.Clear(f)
		case f.IsMap():
			if f.MapValue().Message() == nil {
				break
			}
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				redact(v.Message())
				return true
			})
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				redact(v.List().Get(i).Message())
			}
		case f.Message() != nil:
			redact(v.Message())
		}
		return true
	})
}

func secret(f protoreflect.FieldDescriptor) bool {
	if f.FullName() == "runtime.v1.KeyValue.value" {
		return true
	}
	o, _ := f.Options().(*descriptorpb.FieldOptions)
	return o.GetDebugRedact()
}
