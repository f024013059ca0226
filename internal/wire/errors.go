package wire

import (
	"context"
	"errors"
	"strings"
	"time"
	"unicode"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ringmod/ringmod/internal/cache"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// maxText is of an ErrorDetail's text and source, in bytes (error.proto).
const maxText = 512

// reasons is the one table of errors, both ways (error.proto).
var reasons = [...]struct {
	reason cache.Reason
	wire   ringmodv1.Reason
	code   codes.Code
}{
	{cache.Internal, ringmodv1.Reason_REASON_INTERNAL, codes.Internal},
	{cache.NotFound, ringmodv1.Reason_REASON_NOT_FOUND, codes.NotFound},
	{cache.Gone, ringmodv1.Reason_REASON_GONE, codes.NotFound},
	{cache.NotCached, ringmodv1.Reason_REASON_NOT_CACHED, codes.NotFound},
	{cache.Malformed, ringmodv1.Reason_REASON_MALFORMED, codes.InvalidArgument},
	{cache.Denied, ringmodv1.Reason_REASON_DENIED, codes.PermissionDenied},
	{cache.Busy, ringmodv1.Reason_REASON_BUSY, codes.ResourceExhausted},
	{cache.Broken, ringmodv1.Reason_REASON_UPSTREAM_BROKEN, codes.Unavailable},
	{cache.Slow, ringmodv1.Reason_REASON_UPSTREAM_SLOW, codes.DeadlineExceeded},
	{cache.Mismatch, ringmodv1.Reason_REASON_CHECKSUM_MISMATCH, codes.FailedPrecondition},
	{cache.Purged, ringmodv1.Reason_REASON_PURGED, codes.NotFound},
}

// What a PeerError may wrap, beside a status of gRPC.
var (
	// ErrSilent says that the node sent nothing for too long: it is dead or
	// stopped, which a slow upstream never looks like.
	ErrSilent = errors.New("no sign of life")
	// ErrCrowded says that the connection stands and all of its streams are taken:
	// the node is busy, not dead.
	ErrCrowded = errors.New("no stream is free")
	// ErrProtocol says that the node's messages or bytes are not what they must
	// be.
	ErrProtocol = errors.New("the answer is not right")
)

// PeerError is trouble with a node or the way to it. It says nothing of the
// object that was asked for, above all not that it is absent.
type PeerError struct {
	Node string // as the caller named it; may be empty
	// Code is the status that came or was made on this side. ResourceExhausted is
	// a node that is busy, not one that is dead; DataLoss one whose copy was bad.
	Code codes.Code
	Err  error // ErrSilent, ErrCrowded, ErrProtocol with details, or the status
}

func (e *PeerError) Error() string {
	text := e.Err.Error()
	if st, ok := status.FromError(e.Err); ok {
		text = Line(st.Message())
	}
	if text == "" {
		text = e.Code.String()
	}
	if e.Node == "" {
		return "asking a node: " + text
	}
	return "asking node " + e.Node + ": " + text
}

// Unwrap returns the cause.
func (e *PeerError) Unwrap() error { return e.Err }

// Status returns err as the status that ends a call. A *cache.Error goes with an
// ErrorDetail, the end of a context and a status as they are; anything else is
// Internal and keeps its text to itself.
func Status(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*cache.Error](err); ok {
		return withDetail(e)
	}
	if e, ok := errors.AsType[*PeerError](err); ok {
		return status.Error(codes.Unavailable, Line(e.Error()))
	}
	switch {
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "canceled")
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "deadline exceeded")
	}
	if st, ok := status.FromError(err); ok {
		return st.Err()
	}
	return withDetail(&cache.Error{Reason: cache.Internal})
}

func withDetail(e *cache.Error) error {
	detail := Detail(e)
	st := status.New(codeOf(e.Reason), e.Reason.String()+": "+detail.GetText())
	if detailed, err := st.WithDetails(detail); err == nil {
		st = detailed
	}
	return st.Err()
}

// Detail returns e as members tell it to each other.
func Detail(e *cache.Error) *ringmodv1.ErrorDetail {
	text := e.Text
	if text == "" && e.Err != nil {
		text = e.Err.Error()
	}
	detail := &ringmodv1.ErrorDetail{Reason: wireReason(e.Reason), Source: Line(e.Source), Text: Line(text)}
	if e.RetryAfter > 0 {
		detail.RetryAfter = durationpb.New(e.RetryAfter)
	}
	return detail
}

// FromStatus returns what a call's error means: a *cache.Error when the node says
// so in an ErrorDetail, else a *PeerError. The end of the caller's own context
// is for the caller to tell apart first. node names the other end and may be
// empty.
func FromStatus(err error, node string) error {
	if err == nil {
		return nil
	}
	st := status.Convert(err)
	for _, each := range st.Details() {
		if detail, ok := each.(*ringmodv1.ErrorDetail); ok {
			if e := fromDetail(detail, st.Code(), node); e != nil {
				return e
			}
			break
		}
	}
	return &PeerError{Node: node, Code: st.Code(), Err: err}
}

// fromDetail returns nil when code and detail contradict each other. A reason
// that this version does not know is Internal.
func fromDetail(d *ringmodv1.ErrorDetail, code codes.Code, node string) error {
	e := &cache.Error{Reason: cache.Internal, Source: Line(d.GetSource()), Text: Line(d.GetText()), RetryAfter: duration(d.GetRetryAfter())}
	if e.Source == "" {
		e.Source = node
	}
	for _, row := range reasons {
		if row.wire == d.GetReason() {
			e.Reason = row.reason
			if row.code != code {
				return nil
			}
		}
	}
	return e
}

func codeOf(r cache.Reason) codes.Code {
	for _, row := range reasons {
		if row.reason == r {
			return row.code
		}
	}
	return codes.Internal
}

func wireReason(r cache.Reason) ringmodv1.Reason {
	for _, row := range reasons {
		if row.reason == r {
			return row.wire
		}
	}
	return ringmodv1.Reason_REASON_INTERNAL
}

// Line makes text fit for a terminal and for protobuf: valid UTF-8, nothing
// but what can be printed, no more than maxText bytes.
func Line(text string) string {
	text = strings.ToValidUTF8(text[:min(len(text), maxText)], "")
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
}

// duration returns d, 0 when it is absent or negative. Beyond what fits it is the
// longest time there is.
func duration(d *durationpb.Duration) time.Duration { return max(0, d.AsDuration()) }
