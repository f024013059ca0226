package node_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

const (
	benchSize = 64 << 20
	benchEnv  = "RINGMOD_TEST_NODE_FILE" // makes the test binary a node with that file
)

// naive is a node as one writes it first: messages of 64 KiB through grpc-go's
// own codec and settings.
type naive struct {
	ringmodv1.UnimplementedCacheServiceServer

	path string
}

func (n naive) Get(_ *ringmodv1.GetRequest, stream grpc.ServerStreamingServer[ringmodv1.GetResponse]) error {
	f, err := os.Open(n.path)
	if err != nil {
		return err
	}
	defer f.Close()
	for offset := uint64(0); ; {
		buf := make([]byte, 64<<10)
		got, err := io.ReadFull(f, buf)
		if got == 0 {
			return nil
		}
		c := &ringmodv1.Chunk{Offset: offset, Data: buf[:got]}
		if err := stream.Send(&ringmodv1.GetResponse{Part: &ringmodv1.GetResponse_Chunk{Chunk: c}}); err != nil {
			return err
		}
		offset += uint64(got)
		if err != nil {
			return nil // the end of the file
		}
	}
}

// TestBenchNode is the second process of BenchmarkGetBesideDefaultCodec.
func TestBenchNode(t *testing.T) {
	t.Parallel()
	path := os.Getenv(benchEnv)
	if path == "" {
		t.Skip("only for the benchmark")
	}
	sum, err := os.ReadFile(path + ".sum")
	if err != nil {
		t.Fatal(err)
	}
	ours := grpc.NewServer(wire.ServerOptions(new(wire.Pool))...)
	node.Register(ours, node.ServiceConfig{Cache: cacheFunc(func(context.Context, cache.Request) (*cache.Object, error) {
		f, err := os.Open(path)
		return &cache.Object{Size: benchSize, SHA256: [32]byte(sum), Source: cache.Disk, Body: f}, err
	})})
	theirs := grpc.NewServer()
	ringmodv1.RegisterCacheServiceServer(theirs, naive{path: path})
	for _, s := range []*grpc.Server{ours, theirs} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("addr", l.Addr())
		go func() { _ = s.Serve(l) }()
		defer s.Stop()
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// benchNode starts the second process and returns the addresses of its servers.
func benchNode(b *testing.B) (ours, theirs string) {
	b.Helper()
	path := filepath.Join(b.TempDir(), "zip")
	data := make([]byte, benchSize)
	_, _ = rand.Read(data)
	sum := sha256.Sum256(data)
	for name, content := range map[string][]byte{path: data, path + ".sum": sum[:]} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestBenchNode$")
	cmd.Env = append(os.Environ(), benchEnv+"="+path)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait()
	})
	var addrs []string
	for lines := bufio.NewScanner(stdout); len(addrs) < 2 && lines.Scan(); {
		if addr, ok := strings.CutPrefix(lines.Text(), "addr "); ok {
			addrs = append(addrs, addr)
		}
	}
	if len(addrs) != 2 {
		b.Fatal("the node does not start")
	}
	return addrs[0], addrs[1]
}

func benchDial(b *testing.B, addr string, options ...grpc.DialOption) *grpc.ClientConn {
	b.Helper()
	cc, err := grpc.NewClient(addr, append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cc.Close() })
	return cc
}

func receiveNaive(ctx context.Context, cc *grpc.ClientConn, name string) error {
	stream, err := ringmodv1.NewCacheServiceClient(cc).Get(ctx, &ringmodv1.GetRequest{Target: name})
	if err != nil {
		return err
	}
	var total int64
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) && total == benchSize {
			return nil
		}
		if err != nil {
			return err
		}
		n, _ := io.Discard.Write(m.GetChunk().GetData())
		total += int64(n)
	}
}

func receiveWire(ctx context.Context, cc *grpc.ClientConn, zip target.Target, o wire.Options) error {
	obj, err := wire.Get(ctx, cc, cache.Request{Target: zip}, o)
	if err != nil {
		return err
	}
	defer obj.Body.Close()
	_, err = io.Copy(struct{ io.Writer }{io.Discard}, obj.Body)
	return err
}

// BenchmarkGetBesideDefaultCodec sends a file from one process to another, in
// turns as grpc-go would by default, by this package with CRCs, and with SHA-256
// besides. It reports the medians in GB/s and what each is of the default's. The
// default checks nothing.
func BenchmarkGetBesideDefaultCodec(b *testing.B) {
	zip, err := target.Parse(modPath + "/@v/" + modVers + ".zip")
	if err != nil {
		b.Fatal(err)
	}
	ours, theirs := benchNode(b)
	for _, streams := range []int{1, 8} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) {
			pool := new(wire.Pool)
			plain := benchDial(b, theirs)
			fast := benchDial(b, ours, wire.DialOptions(pool, wire.Near)...)
			ways := []struct {
				name    string
				receive func() error
				rates   []float64
			}{
				{name: "default", receive: func() error { return receiveNaive(b.Context(), plain, zip.String()) }},
				{name: "crc", receive: func() error {
					return receiveWire(b.Context(), fast, zip, wire.Options{Pool: pool, CRCOnly: true})
				}},
				{name: "sha256", receive: func() error { return receiveWire(b.Context(), fast, zip, wire.Options{Pool: pool}) }},
			}
			for b.Loop() {
				for i := range ways {
					ways[i].rates = append(ways[i].rates, rateOf(b, streams, ways[i].receive))
				}
			}
			for i := range ways {
				slices.Sort(ways[i].rates)
				median := func(i int) float64 { return ways[i].rates[len(ways[i].rates)/2] }
				b.ReportMetric(median(i), ways[i].name+"_GB/s")
				if i > 0 {
					b.ReportMetric(median(i)/median(0), ways[i].name+"_ratio")
				}
			}
		})
	}
}

// rateOf runs streams at once and returns their GB/s together.
func rateOf(b *testing.B, streams int, receive func() error) float64 {
	b.Helper()
	start := time.Now()
	var wg sync.WaitGroup
	for range streams {
		wg.Go(func() {
			if err := receive(); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	return float64(streams) * benchSize / 1e9 / time.Since(start).Seconds()
}
