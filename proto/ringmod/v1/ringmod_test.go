package ringmodv1_test

import (
	"math"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/ringmod/ringmod/internal/cache"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// TestNodeMetaFits checks the promise of NodeMeta: memberlist takes at most 512
// bytes of metadata. The strings have the limits that Member documents.
func TestNodeMetaFits(t *testing.T) {
	t.Parallel()
	limits := map[protoreflect.Name]int{"id": 64, "region": 32, "zone": 32, "grpc_address": 128}
	meta := &ringmodv1.NodeMeta{Member: &ringmodv1.Member{}, DiskClass: math.MaxUint32, LoadClass: math.MaxUint32, Version: strings.Repeat("v", 48)}
	member := meta.GetMember().ProtoReflect()
	fields := member.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		member.Set(field, largest(t, field, limits))
	}
	if got := proto.Size(meta); got > 512 {
		t.Errorf("the largest NodeMeta takes %d bytes, want at most 512", got)
	}
}

func largest(t *testing.T, field protoreflect.FieldDescriptor, limits map[protoreflect.Name]int) protoreflect.Value {
	t.Helper()
	switch kind := field.Kind(); kind {
	case protoreflect.StringKind:
		if limits[field.Name()] == 0 {
			t.Errorf("%s has no limit", field.Name())
		}
		return protoreflect.ValueOfString(strings.Repeat("x", limits[field.Name()]))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(math.MaxUint32)
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(math.MaxUint64)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(math.MaxInt32)
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	default:
		t.Fatalf("%s has kind %v, which has no largest value here", field.Name(), kind)
		return protoreflect.Value{}
	}
}

// TestReasonsMirrorCache walks both lists: the wire is one ahead, because its
// zero means that the sender left the reason out.
func TestReasonsMirrorCache(t *testing.T) {
	t.Parallel()
	for number, name := range ringmodv1.Reason_name {
		if number == 0 {
			continue
		}
		got := strings.ToLower(strings.TrimPrefix(name, "REASON_"))
		if want := cache.Reason(number - 1).String(); got != want {
			t.Errorf("Reason %d is %q, want %q as in internal/cache", number, got, want)
		}
	}
	if next := cache.Reason(len(ringmodv1.Reason_name) - 1).String(); next != "unknown" {
		t.Errorf("internal/cache has the reason %q, which Reason lacks", next)
	}
}

func TestSourcesMirrorCache(t *testing.T) {
	t.Parallel()
	for number, name := range ringmodv1.Source_name {
		if number == 0 {
			continue
		}
		got := strings.ToLower(strings.TrimPrefix(name, "SOURCE_"))
		if want := cache.Source(number).String(); got != want {
			t.Errorf("Source %d is %q, want %q as in internal/cache", number, got, want)
		}
	}
	if next := cache.Source(len(ringmodv1.Source_name)).String(); next != "unknown" {
		t.Errorf("internal/cache has the source %q, which Source lacks", next)
	}
}
