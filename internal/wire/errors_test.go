package wire_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

func TestEveryReasonRoundTrips(t *testing.T) {
	t.Parallel()
	seen := 0
	for reason := cache.Reason(0); reason.String() != "unknown"; reason++ {
		seen++
		want := &cache.Error{Reason: reason, Source: "proxy.example", Text: "says so", RetryAfter: 7 * time.Second}
		sent := wire.Status(fmt.Errorf("filling: %w", want))
		got, ok := errors.AsType[*cache.Error](wire.FromStatus(sent, "n1"))
		if !ok || got.Reason != want.Reason || got.Source != want.Source || got.Text != want.Text || got.RetryAfter != want.RetryAfter {
			t.Errorf("%v: got %+v, want %+v", reason, got, want)
		}
		if name := "REASON_" + strings.ToUpper(reason.String()); ringmodv1.Reason_value[name] != int32(reason)+1 {
			t.Errorf("%v has no partner %s with number %d", reason, name, reason+1)
		}
	}
	if want := len(ringmodv1.Reason_name) - 1; seen != want {
		t.Errorf("%d reasons, want the %d of error.proto", seen, want)
	}
}

func TestCodes(t *testing.T) {
	t.Parallel()
	tests := []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK},
		{&cache.Error{Reason: cache.NotFound}, codes.NotFound},
		{&cache.Error{Reason: cache.Gone}, codes.NotFound},
		{&cache.Error{Reason: cache.NotCached}, codes.NotFound},
		{&cache.Error{Reason: cache.Malformed}, codes.InvalidArgument},
		{&cache.Error{Reason: cache.Denied}, codes.PermissionDenied},
		{&cache.Error{Reason: cache.Busy}, codes.ResourceExhausted},
		{&cache.Error{Reason: cache.Broken}, codes.Unavailable},
		{&cache.Error{Reason: cache.Slow}, codes.DeadlineExceeded},
		{&cache.Error{Reason: cache.Mismatch}, codes.FailedPrecondition},
		{&cache.Error{Reason: cache.Internal}, codes.Internal},
		{&cache.Error{Reason: 200}, codes.Internal},
		{context.Canceled, codes.Canceled},
		{fmt.Errorf("waiting: %w", context.DeadlineExceeded), codes.DeadlineExceeded},
		{status.Error(codes.DataLoss, "bad copy"), codes.DataLoss},
		{&wire.PeerError{Code: codes.NotFound, Err: wire.ErrSilent}, codes.Unavailable},
		{fs.ErrNotExist, codes.Internal},
	}
	for _, test := range tests {
		if got := status.Code(wire.Status(test.err)); got != test.want {
			t.Errorf("Status(%v) = %v, want %v", test.err, got, test.want)
		}
	}
}

// What carries no detail, or one that contradicts it, is never absence.
func TestTroubleIsNotAbsence(t *testing.T) {
	t.Parallel()
	detailed := func(code codes.Code, reason ringmodv1.Reason) error {
		st, err := status.New(code, "x").WithDetails(&ringmodv1.ErrorDetail{Reason: reason})
		if err != nil {
			t.Fatal(err)
		}
		return st.Err()
	}
	tests := []error{
		detailed(codes.Unavailable, ringmodv1.Reason_REASON_NOT_FOUND),
		detailed(codes.Internal, ringmodv1.Reason_REASON_GONE),
		errors.New("no status at all"),
		fs.ErrNotExist,
	}
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		tests = append(tests, status.Error(code, "no detail"))
	}
	for _, err := range tests {
		got := wire.FromStatus(err, "n1")
		peer, ok := errors.AsType[*wire.PeerError](got)
		if !ok || peer.Node != "n1" || cache.ReasonOf(got).Absent() {
			t.Errorf("FromStatus(%v) = %#v, want a *PeerError", err, got)
		}
		if err != fs.ErrNotExist && errors.Is(got, fs.ErrNotExist) { //nolint:errorlint // the one that went in
			t.Errorf("FromStatus(%v) is fs.ErrNotExist", err)
		}
	}
}

func TestUnknownReasonIsInternal(t *testing.T) {
	t.Parallel()
	for _, reason := range []ringmodv1.Reason{0, 99, -1} {
		st, err := status.New(codes.NotFound, "x").WithDetails(&ringmodv1.ErrorDetail{Reason: reason})
		if err != nil {
			t.Fatal(err)
		}
		got, ok := errors.AsType[*cache.Error](wire.FromStatus(st.Err(), "n1"))
		if !ok || got.Reason != cache.Internal || got.Source != "n1" {
			t.Errorf("reason %d: got %+v, want Internal of n1", reason, got)
		}
	}
}

func TestTextsAreFitForATerminal(t *testing.T) {
	t.Parallel()
	nasty := "a\x1b[31m\r\nb\u202e\xff" + strings.Repeat("é", 1000)
	sent := wire.Status(&cache.Error{Reason: cache.Broken, Source: nasty, Text: nasty})
	got, ok := errors.AsType[*cache.Error](wire.FromStatus(sent, ""))
	if !ok {
		t.Fatalf("got %v, want the error", wire.FromStatus(sent, ""))
	}
	for _, text := range []string{got.Text, got.Source, wire.FromStatus(status.Error(codes.Unavailable, nasty), "n").Error()} {
		if !utf8.ValidString(text) || len(text) > 600 || strings.ContainsAny(text, "\x1b\r\n\u202e") {
			t.Errorf("got %q, want one short printable line", text)
		}
	}
}
