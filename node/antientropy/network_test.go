package antientropy_test

import (
	"context"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// Usable implements antientropy.Nodes.
func (w *world) Usable(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[id] != nil && !w.down[id]
}

// Conn implements antientropy.Nodes.
func (w *world) Conn(id string) (grpc.ClientConnInterface, error) { return &conn{w: w, id: id}, nil }

// conn calls a node in this process. It sees to the limits of peer.proto.
type conn struct {
	w  *world
	id string
}

func (c *conn) node(method string) (*node, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.calls[method]++
	n := c.w.nodes[c.id]
	if n == nil || c.w.down[c.id] {
		return nil, status.Error(codes.Unavailable, "gone")
	}
	return n, nil
}

// Invoke implements grpc.ClientConnInterface.
func (c *conn) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	n, err := c.node(method)
	if err != nil {
		return err
	}
	var resp proto.Message
	switch req := args.(type) {
	case *ringmodv1.DigestsRequest:
		resp, err = n.server.Digests(ctx, req)
	case *ringmodv1.AnnounceRequest:
		if count := len(req.GetCopies()); count < 1 || count > 1024 {
			c.w.t.Errorf("%d copies announced", count)
		}
		resp = n.announce(ctx, req)
	default:
		c.w.t.Errorf("call of %s", method)
		return status.Error(codes.Unimplemented, method)
	}
	if err != nil {
		return err
	}
	c.measure(args.(proto.Message), resp)
	proto.Merge(reply.(proto.Message), resp)
	return nil
}

func (c *conn) measure(messages ...proto.Message) {
	for _, m := range messages {
		if proto.Size(m) > 1<<20 {
			c.w.t.Errorf("a message of %d bytes", proto.Size(m))
		}
	}
}

// NewStream implements grpc.ClientConnInterface.
func (c *conn) NewStream(ctx context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	n, err := c.node(method)
	if err != nil {
		return nil, err
	}
	return &stream{ctx: ctx, conn: c, node: n, pages: make(chan *ringmodv1.KeysResponse), done: make(chan error, 1)}, nil
}

// stream is both ends of a call of Keys.
type stream struct {
	grpc.ClientStream

	ctx   context.Context //nolint:containedctx // of the call
	conn  *conn
	node  *node
	pages chan *ringmodv1.KeysResponse
	done  chan error
}

func (s *stream) SendMsg(m any) error {
	req, ok := m.(*ringmodv1.KeysRequest)
	if !ok || len(req.GetHashes()) > 1024 {
		s.conn.w.t.Errorf("keys are asked for with %v", m)
	}
	go func() {
		s.done <- s.node.server.Keys(req, &serverStream{stream: s})
		close(s.done)
	}()
	return nil
}

func (s *stream) CloseSend() error { return nil }

func (s *stream) RecvMsg(m any) error {
	select {
	case page := <-s.pages:
		s.conn.measure(page)
		proto.Merge(m.(proto.Message), page)
		return nil
	case err := <-s.done:
		if err == nil {
			err = io.EOF
		}
		return err
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

type serverStream struct {
	grpc.ServerStream

	stream *stream
}

func (s *serverStream) Context() context.Context { return s.stream.ctx }

func (s *serverStream) Send(page *ringmodv1.KeysResponse) error {
	select {
	case s.stream.pages <- page:
		return nil
	case <-s.stream.ctx.Done():
		return s.stream.ctx.Err()
	}
}
