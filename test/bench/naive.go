package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// The naive pair is a gateway and a node as one writes them first, by the book:
// messages of 64 KiB through grpc-go's own codec and settings. They check nothing
// and keep nothing. Each is a child of this program, started by its name and one
// argument.
const (
	naiveNodeName    = "naive-node"    // and the folder to serve
	naiveGatewayName = "naive-gateway" // and the address of the node

	naiveChunk = 64 << 10
)

// naive runs one half of the pair until ctx ends; ok is false when args are for
// the benchmark itself.
func naive(ctx context.Context, args []string, stdout io.Writer) (ok bool, err error) {
	if len(args) != 2 {
		return false, nil
	}
	switch args[0] {
	case naiveNodeName:
		return true, runNaiveNode(ctx, args[1], stdout)
	case naiveGatewayName:
		return true, runNaiveGateway(ctx, args[1], stdout)
	}
	return false, nil
}

// naiveNode serves the files below root.
type naiveNode struct {
	ringmodv1.UnimplementedCacheServiceServer

	root *os.Root
}

func runNaiveNode(ctx context.Context, dir string, stdout io.Writer) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	ringmodv1.RegisterCacheServiceServer(s, naiveNode{root: root})
	defer context.AfterFunc(ctx, s.Stop)()
	fmt.Fprintf(stdout, "ready grpc=%s\n", l.Addr())
	return s.Serve(l)
}

// Get sends the size, then the file.
func (n naiveNode) Get(req *ringmodv1.GetRequest, stream grpc.ServerStreamingServer[ringmodv1.GetResponse]) error {
	f, err := n.root.Open(req.GetTarget())
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	header := &ringmodv1.Header{Size: new(uint64(info.Size()))}
	if err := stream.Send(&ringmodv1.GetResponse{Part: &ringmodv1.GetResponse_Header{Header: header}}); err != nil {
		return err
	}
	for offset := uint64(0); ; {
		buf := make([]byte, naiveChunk) // what was sent must not be modified, says grpc.ServerStream
		got, err := io.ReadFull(f, buf)
		if got > 0 {
			c := &ringmodv1.Chunk{Offset: offset, Data: buf[:got]}
			if err := stream.Send(&ringmodv1.GetResponse{Part: &ringmodv1.GetResponse_Chunk{Chunk: c}}); err != nil {
				return err
			}
			offset += uint64(got)
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// naiveGateway answers over HTTP what a node has.
type naiveGateway struct{ node ringmodv1.CacheServiceClient }

func runNaiveGateway(ctx context.Context, node string, stdout io.Writer) error {
	cc, err := grpc.NewClient(node, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer cc.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := &http.Server{Handler: naiveGateway{ringmodv1.NewCacheServiceClient(cc)}}
	defer context.AfterFunc(ctx, func() { s.Close() })()
	fmt.Fprintf(stdout, "ready http=%s\n", l.Addr())
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// ServeHTTP passes the answer of the node on as it comes.
func (g naiveGateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	stream, err := g.node.Get(r.Context(), &ringmodv1.GetRequest{Target: strings.TrimPrefix(r.URL.Path, "/")})
	var first *ringmodv1.GetResponse
	if err == nil {
		first, err = stream.Recv()
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatUint(first.GetHeader().GetSize(), 10))
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return
		}
		if err == nil {
			_, err = w.Write(m.GetChunk().GetData())
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}
}
