package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

var update = flag.Bool("update", false, "write what is printed into testdata")

// TestShown prints the answers in testdata as people see them.
func TestShown(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("got %d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := shown(t, archive)
			want := &archive.Files[len(archive.Files)-1]
			if want.Name != "output" {
				t.Fatalf("%s: the last file is %s, want output", file, want.Name)
			}
			for line := range strings.Lines(got) {
				if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 120 && strings.Contains(line, "  ") {
					t.Errorf("%d columns: %s", n, line)
				}
			}
			if *update {
				want.Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(archive), 0o666); err != nil {
					t.Fatal(err)
				}
			} else if got != string(want.Data) {
				t.Errorf("%s (go test -update writes it): got\n%s\nwant\n%s", file, got, want.Data)
			}
		})
	}
}

// shown prints the answer of an archive: status.json, or explain.json with its
// subject.
func shown(t *testing.T, archive *txtar.Archive) string {
	t.Helper()
	var out bytes.Buffer
	subject := ""
	for _, f := range archive.Files {
		switch f.Name {
		case "subject":
			subject = strings.TrimSpace(string(f.Data))
		case "status.json":
			var r ringmodv1.StatusResponse
			decode(t, f.Data, &r)
			printStatus(&out, &r)
		case "explain.json":
			var r ringmodv1.ExplainResponse
			decode(t, f.Data, &r)
			printExplain(&out, subject, &r)
		}
	}
	return out.String()
}

func decode(t *testing.T, data []byte, m proto.Message) {
	t.Helper()
	if err := protojson.Unmarshal(data, m); err != nil {
		t.Fatal(err)
	}
}

func TestUnits(t *testing.T) {
	t.Parallel()
	for n, want := range map[uint64]string{
		0: "0B", 1023: "1023B", 1024: "1.0K", 99 << 10: "99.0K", 999 << 10: "999K", 1023 << 10: "1.0M", 1 << 40: "1.0T", 1<<64 - 1: "16.0E",
	} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 999 * time.Millisecond: "0s", 59 * time.Second: "59s", time.Minute: "1m", 754 * time.Second: "12m34s",
		time.Hour: "1h", 192 * time.Minute: "3h12m", 25 * time.Hour: "1d1h", 1<<63 - 1: "106751d23h",
	} {
		if got := age(durationpb.New(d)); got != want {
			t.Errorf("age(%v) = %s, want %s", d, got, want)
		}
	}
	for d, want := range map[time.Duration]string{0: "0.0ms", 420 * time.Microsecond: "0.4ms", 81 * time.Millisecond: "81ms", 2 * time.Second: "2000ms"} {
		if got := roundTrip(durationpb.New(d)); got != want {
			t.Errorf("roundTrip(%v) = %s, want %s", d, got, want)
		}
	}
	if got := age(nil) + roundTrip(nil); got != none+none {
		t.Errorf("got %q for what is not known", got)
	}
	for n, want := range map[int]string{0: "", 1: "a", 2: "a and a", 6: "a, a, a, a, a and a", 7: "a, a, a, a, a and 2 more"} {
		if got := listed(strings.Fields(strings.Repeat("a ", n))); got != want {
			t.Errorf("%d names: got %q, want %q", n, got, want)
		}
	}
}
