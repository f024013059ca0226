package wire

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"

	"github.com/ringmod/ringmod/internal/cache"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// Options say how Get asks.
type Options struct {
	Node string // the other end, for errors; "" = not named
	Pool *Pool  // of buffers to gather chunks in; nil = one for this call
	// Template is what goes beyond cache.Request: view, request id, region and
	// freshness. Its other fields are overwritten. nil = nothing.
	Template *ringmodv1.GetRequest
	// MaxInline is the largest object that may come with the header, in bytes; 0 =
	// the protocol's limit, negative = none.
	MaxInline int
	// Resume goes on where another stream broke; nil = from the start.
	Resume *Resume
	// CRCOnly takes the CRC-32C of each chunk for proof enough of an object that
	// the node holds: SHA-256 costs as much again as the transfer (perf.md 6.5).
	// For who hashes the bytes himself, or serves them to somebody who does. What
	// is being filled is hashed all the same.
	CRCOnly bool
	// Narrow is for whoever keeps connections: this body may be read slowly, and is
	// to come over one with Narrow windows. Get takes the one that it is given.
	Narrow bool
	// Silence is how long the node may send nothing before it counts as dead; 0 =
	// the protocol's limit.
	Silence time.Duration
	// Fanout tells a spare rank over how many ranks the caller spreads the object; 0 =
	// it is asked for another reason.
	Fanout int
	// First is the same for the first message, connecting included; 0 = Silence.
	First time.Duration
	// OnHeader sees the header before Get returns: view, fanout; nil = nobody.
	OnHeader func(*ringmodv1.Header)
}

// Resume is where a stream can be taken up again, on any node with the same
// bytes.
type Resume struct {
	Offset int64    // the first byte that is still missing
	SHA256 [32]byte // of the whole object

	hash hash.Cloner // of the bytes before Offset; never written to; nil = not hashed
}

// Get asks the node behind cc for an object. It returns when the header is there,
// with a body that the caller closes: an io.ReadSeeker for an object that came
// whole with the header, else a *Body. With Resume the body yields what is
// missing, and Size is that of the whole object.
//
// Errors are a *cache.Error that the node sent, a *PeerError, or the error of
// ctx. ctx bounds the body too.
func Get(ctx context.Context, cc grpc.ClientConnInterface, req cache.Request, o Options) (*cache.Object, error) {
	if o.Silence == 0 {
		o.Silence = Silence
	}
	if o.First == 0 {
		o.First = o.Silence
	}
	if o.Pool == nil {
		o.Pool = new(Pool)
	}
	s, err := open(ctx, cc, request(req, o), o)
	if err != nil {
		return nil, err
	}
	obj, err := s.object(o)
	if err != nil {
		return nil, s.fail(err)
	}
	return obj, nil
}

func request(req cache.Request, o Options) *ringmodv1.GetRequest {
	t := o.Template // by field: proto.Clone costs as much as all the rest
	r := &ringmodv1.GetRequest{
		ViewDigest: t.GetViewDigest(), ViewSeq: t.GetViewSeq(), RequestId: t.GetRequestId(), CallerRegion: t.GetCallerRegion(),
		Freshness: t.GetFreshness(),
	}
	r.Target, r.Whole, r.Mode = req.Target.String(), req.Whole, modeOf(req.Mode)
	r.Hops = uint32(min(max(MaxHops-req.Hops, 0), MaxHops)) // the wire counts those that are left
	r.Refresh = req.Refresh
	r.Fanout = uint32(max(o.Fanout, 0))
	switch {
	case o.MaxInline < 0 || (o.Resume != nil && o.Resume.hash == nil): // no CRC goes with inline bytes
		r.MaxInline = 0
	case o.MaxInline == 0:
		r.MaxInline = MaxInline
	default:
		r.MaxInline = uint32(min(o.MaxInline, MaxInline))
	}
	r.Offset, r.WantSha256 = 0, nil
	if o.Resume != nil {
		r.Offset, r.WantSha256 = uint64(o.Resume.Offset), o.Resume.SHA256[:]
	}
	return r
}

func modeOf(m cache.Mode) ringmodv1.Mode {
	switch m {
	case cache.AllowFill:
		return ringmodv1.Mode_MODE_ALLOW_FILL
	case cache.Coordinate:
		return ringmodv1.Mode_MODE_COORDINATE
	case cache.Peek:
		return ringmodv1.Mode_MODE_PEEK
	default:
		return ringmodv1.Mode_MODE_ONLY_IF_CACHED
	}
}

// errClosed ends a stream whose reader has closed the body.
var errClosed = errors.New("the body is closed")

// stream is the receiving end of a call. One goroutine uses it, but for close.
type stream struct {
	grpc.ClientStream

	node    string
	silence time.Duration
	begun   bool // a message has come
	cancel  context.CancelCauseFunc
	ended   func() error // why the call's context is over, nil while it is not
	expires bool         // the caller's context has a deadline
	watch   *time.Timer  // ends the call with ErrSilent
	msg     message
}

// open starts the call and sends the request.
func open(parent context.Context, cc grpc.ClientConnInterface, req *ringmodv1.GetRequest, o Options) (*stream, error) {
	ctx, cancel := context.WithCancelCause(parent)
	_, expires := parent.Deadline()
	s := &stream{
		node: o.Node, silence: o.Silence, cancel: cancel, expires: expires,
		watch: time.AfterFunc(o.First, func() { cancel(ErrSilent) }),
		ended: func() error {
			if err := parent.Err(); err != nil {
				return err
			}
			return context.Cause(ctx)
		},
	}
	var err error
	s.ClientStream, err = cc.NewStream(ctx, &ringmodv1.CacheService_ServiceDesc.Streams[0], ringmodv1.CacheService_Get_FullMethodName,
		grpc.ForceCodecV2(Codec{}), grpc.MaxCallRecvMsgSize(maxGetMessage))
	if err != nil && noStreamFree(cc) && errors.Is(context.Cause(ctx), ErrSilent) {
		return nil, s.fail(&PeerError{Node: s.node, Code: codes.ResourceExhausted, Err: ErrCrowded})
	}
	if err == nil {
		err = s.SendMsg(req)
	}
	if err == nil {
		err = s.CloseSend()
	}
	// After io.EOF the status is to be had by receiving.
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, s.fail(s.translate(err))
	}
	return s, nil
}

// noStreamFree reports whether a call that could not begin has waited for other
// calls to end, as the connection stands.
func noStreamFree(cc grpc.ClientConnInterface) bool {
	c, ok := cc.(interface{ GetState() connectivity.State })
	return ok && c.GetState() == connectivity.Ready
}

// next receives one message; io.EOF is the end of a stream that the node ended
// well. Any other error is final and ready for the caller.
func (s *stream) next() (*message, error) {
	if s.begun { // before that the clock runs since the call began
		s.watch.Reset(s.silence)
	}
	err := s.RecvMsg(&s.msg)
	s.watch.Stop()
	s.begun = true
	if err != nil && !errors.Is(err, io.EOF) {
		err = s.translate(err)
	}
	return &s.msg, err
}

// translate tells why the call failed: our own doing, or the node's.
func (s *stream) translate(err error) error {
	switch ended := s.ended(); {
	case ended == ErrSilent: //nolint:errorlint // the cause itself
		return &PeerError{Node: s.node, Code: codes.Unavailable, Err: ErrSilent}
	case ended != nil:
		return ended
	}
	err = FromStatus(err, s.node)
	// The node keeps our deadline too, and may be the first to notice.
	if e, ok := errors.AsType[*PeerError](err); ok && e.Code == codes.DeadlineExceeded && s.expires {
		return context.DeadlineExceeded
	}
	return err
}

// close ends the call. It may be called at any time by any goroutine.
func (s *stream) close(cause error) {
	s.watch.Stop()
	s.cancel(cause)
}

// fail ends the call and returns err.
func (s *stream) fail(err error) error {
	s.close(err)
	return err
}

// wrong is the error for what a node must not send.
func (s *stream) wrong(format string, args ...any) error {
	return &PeerError{Node: s.node, Code: codes.DataLoss, Err: fmt.Errorf("%w: "+format, append([]any{ErrProtocol}, args...)...)}
}

// object waits for the header and makes the answer from it.
func (s *stream) object(o Options) (*cache.Object, error) {
	header, err := s.header()
	if err != nil {
		return nil, err
	}
	if o.OnHeader != nil {
		o.OnHeader(header)
	}
	obj, err := s.describe(header)
	if err != nil {
		return nil, err
	}
	resume := Resume{}
	if !o.CRCOnly || obj.SHA256 == [32]byte{} {
		resume.hash = newHash()
	}
	if o.Resume != nil {
		if obj.SHA256 != o.Resume.SHA256 || (obj.Size >= 0 && obj.Size < o.Resume.Offset) {
			return nil, s.wrong("other bytes than those asked for")
		}
		resume = *o.Resume
	}
	if header.Inline != nil {
		obj.Body, err = s.inline(obj, header.GetInline(), resume)
		return obj, err
	}
	obj.Body = newBody(s, obj, resume, o.Pool)
	return obj, nil
}

// header waits for the header, past signs of life.
func (s *stream) header() (*ringmodv1.Header, error) {
	for {
		m, err := s.next()
		switch {
		case errors.Is(err, io.EOF):
			return nil, s.wrong("the stream ended without a header")
		case err != nil:
			return nil, err
		case m.header != nil:
			return m.header, nil
		case m.chunk != nil || m.trailer != nil:
			return nil, s.wrong("bytes came before the header")
		}
	}
}

// describe translates a header and holds it to its rules.
func (s *stream) describe(h *ringmodv1.Header) (*cache.Object, error) {
	obj := &cache.Object{
		Size: -1, Age: duration(h.GetAge()), TTL: duration(h.GetTtl()), Stale: h.GetStale(), Private: h.GetPrivate(), Single: h.GetSingle(),
		H1: h.GetH1(), Verified: h.GetVerified(), Source: sourceOf(h.GetSource()),
	}
	if len(obj.H1) > maxH1 {
		return nil, s.wrong("a module hash of %d bytes", len(obj.H1))
	}
	if h.Size != nil {
		if h.GetSize() > math.MaxInt64 {
			return nil, s.wrong("a size of %d bytes", h.GetSize())
		}
		obj.Size = int64(h.GetSize())
	}
	if h.StoredAge != nil {
		obj.ModTime = time.Now().Add(-duration(h.GetStoredAge()))
	}
	switch len(h.GetSha256()) {
	case 0:
	case sha256.Size:
		obj.SHA256 = [32]byte(h.GetSha256())
	default:
		return nil, s.wrong("a digest of %d bytes", len(h.GetSha256()))
	}
	return obj, nil
}

func sourceOf(s ringmodv1.Source) cache.Source {
	if s <= ringmodv1.Source_SOURCE_UNSPECIFIED || s > ringmodv1.Source_SOURCE_UPSTREAM {
		return cache.Upstream
	}
	return cache.Source(s)
}
