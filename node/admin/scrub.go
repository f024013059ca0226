package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"sync"

	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node/scrub"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// Scrubber checks what this node holds; *scrub.Scrubber is one.
type Scrubber interface {
	ScrubNow(ctx context.Context, rate int64, all bool, report func(scrub.Progress) error) error
}

var errStopping = &cache.Error{Reason: cache.Busy, Text: "the member is stopping"}

// Scrub implements AdminService.
func (s *service) Scrub(req *ringmodv1.ScrubRequest, stream grpc.ServerStreamingServer[ringmodv1.ScrubResponse]) (err error) {
	ctx, cancel := s.untilEnding(stream.Context())
	defer cancel()
	defer s.end(ctx, "Scrub", &err)
	ids, err := s.toScrub(req)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	send := func(r *ringmodv1.ScrubResponse) error {
		mu.Lock()
		defer mu.Unlock()
		return stream.Send(r)
	}
	return s.each(ctx, ids, func(ctx context.Context, id string) error { return s.scrubOne(ctx, id, req, send) })
}

// untilEnding returns a context that ends with this member, too.
func (s *service) untilEnding(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	go func() {
		select {
		case <-s.cfg.Ending:
			cancel(errStopping)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// toScrub returns the nodes that a request is about, sorted.
func (s *service) toScrub(req *ringmodv1.ScrubRequest) ([]string, error) {
	if req.GetLocal() {
		if !slices.Equal(req.GetNodeIds(), []string{s.cfg.Self}) || s.cfg.Scrubber == nil {
			return nil, malformed("this is " + s.cfg.Self + ", not the node that is to be scrubbed")
		}
		return req.GetNodeIds(), nil
	}
	nodes := s.nodes()
	var ids []string
	for _, id := range req.GetNodeIds() {
		if _, known := nodes[id]; !known {
			return nil, malformed("no node of the cluster is called " + id)
		}
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		for id, isUp := range nodes {
			if isUp {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

func malformed(text string) error { return &cache.Error{Reason: cache.Malformed, Text: text} }

// survive, deferred, makes a panic the end of its call.
func (s *service) survive(ctx context.Context, id string, err *error) {
	if p := recover(); p != nil {
		s.cfg.Logger.ErrorContext(ctx, "panic in a call", "about", id, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = &cache.Error{Reason: cache.Internal, Text: "the member failed while answering"}
	}
}

// scrubOne scrubs a node. Its trouble is told in its last message; an error is that of the
// caller.
func (s *service) scrubOne(ctx context.Context, id string, req *ringmodv1.ScrubRequest, send func(*ringmodv1.ScrubResponse) error) error {
	last := &ringmodv1.ScrubResponse{NodeId: id}
	keep := func(r *ringmodv1.ScrubResponse) error {
		last = r
		if r.GetDone() {
			return nil
		}
		return send(r)
	}
	var err error
	if id == s.cfg.Self && s.cfg.Scrubber != nil {
		err = s.scrubHere(ctx, req, keep)
	} else {
		err = s.scrubThere(ctx, id, req, keep)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	end := &ringmodv1.ScrubResponse{
		NodeId: id, ObjectsChecked: last.GetObjectsChecked(), ObjectsTotal: last.GetObjectsTotal(),
		BytesChecked: last.GetBytesChecked(), BytesTotal: last.GetBytesTotal(), Done: true, Error: last.GetError(),
	}
	if last.GetDone() { // else its findings have been sent
		end.Findings = last.GetFindings()
	}
	if err != nil {
		end.Error = detailOf(err)
	}
	return send(end)
}

func detailOf(err error) *ringmodv1.ErrorDetail {
	e, ok := errors.AsType[*cache.Error](err)
	switch {
	case errors.Is(err, scrub.ErrBusy):
		e = &cache.Error{Reason: cache.Busy, Text: err.Error()}
	case !ok:
		e = &cache.Error{Reason: cache.Internal, Text: err.Error()}
	}
	return wire.Detail(e)
}

func (s *service) scrubHere(ctx context.Context, req *ringmodv1.ScrubRequest, send func(*ringmodv1.ScrubResponse) error) error {
	rate := int64(min(req.GetBytesPerSecond(), 1<<40))
	return s.cfg.Scrubber.ScrubNow(ctx, rate, req.GetAll(), func(p scrub.Progress) error {
		r := &ringmodv1.ScrubResponse{
			NodeId: s.cfg.Self, ObjectsChecked: uint64(p.Objects), ObjectsTotal: uint64(p.TotalObjects),
			BytesChecked: uint64(p.Bytes), BytesTotal: uint64(p.TotalBytes),
		}
		for _, f := range p.Findings {
			r.Findings = append(r.Findings, &ringmodv1.ScrubFinding{Target: f.Name, Text: wire.Line(f.Text), Repaired: f.Repaired})
		}
		return send(r)
	})
}

// scrubThere passes a request on.
func (s *service) scrubThere(ctx context.Context, id string, req *ringmodv1.ScrubRequest, send func(*ringmodv1.ScrubResponse) error) error {
	conn, err := s.cfg.Conns.Conn(id)
	if err != nil {
		return err
	}
	stream, err := ringmodv1.NewAdminServiceClient(conn).Scrub(ctx, &ringmodv1.ScrubRequest{
		NodeIds: []string{id}, BytesPerSecond: req.GetBytesPerSecond(), All: req.GetAll(), Local: true,
	})
	if err != nil {
		return wire.FromStatus(err, id)
	}
	return relay(stream, id, func(r *ringmodv1.ScrubResponse) bool { return r.GetNodeId() == id }, send)
}

// relay hands on what a node tells, while it is what the node may tell.
func relay[R any](stream grpc.ServerStreamingClient[R], id string, fits func(*R) bool, send func(*R) error) error {
	for {
		r, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return wire.FromStatus(err, id)
		case !fits(r):
			return errOther
		}
		if err := send(r); err != nil {
			return err
		}
	}
}
