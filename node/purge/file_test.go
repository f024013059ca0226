package purge_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/ringmod/ringmod/node/purge"
)

func someState() purge.State {
	made := time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC)
	return purge.State{
		Epoch: 9, Forgotten: made.AddDate(0, -2, 0), Heard: made.Add(time.Hour),
		Tombstones: []purge.Tombstone{
			{Name: purge.Name{Name: "a.b/c/@v/", Prefix: true}, Epoch: 7, Text: `why "not"`, Made: made},
			{Name: purge.Name{Name: "a.b/c/@v/v1.0.0.zip"}, Epoch: 9, Lifted: true, Made: made},
		},
	}
}

func encode(t testing.TB, s purge.State) []byte {
	t.Helper()
	b, err := purge.EncodeState(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFileRoundTrip(t *testing.T) {
	t.Parallel()
	for _, want := range []purge.State{{}, someState()} {
		got, damaged, err := purge.DecodeState(encode(t, want))
		if err != nil || damaged != 0 || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %d damaged, %v\nwant %+v", got, damaged, err, want)
		}
	}
}

// No change of a byte is taken for something else: its line is left out, the others stay.
func TestFileDamage(t *testing.T) {
	t.Parallel()
	good := encode(t, someState())
	head := bytes.IndexByte(good, '\n') + 1
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 4
		got, damaged, err := purge.DecodeState(bad)
		if i < head {
			if err == nil {
				t.Errorf("byte %d of the head: no error", i)
			}
			continue
		}
		if err != nil || damaged == 0 || len(got.Tombstones) == 2 && got.Epoch == 9 && !got.Heard.IsZero() {
			t.Errorf("byte %d (%q): got %+v, %d damaged, %v", i, good[i], got, damaged, err)
		}
	}
	for n := head; n < len(good); n++ {
		if got, _, err := purge.DecodeState(good[:n]); err != nil || len(got.Tombstones) > 2 {
			t.Errorf("cut to %d bytes: %+v, %v", n, got, err)
		}
	}
}

func TestFileOnDisk(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tombstones")
	file := purge.File(path)
	var logged bytes.Buffer
	log := slog.New(slog.NewTextHandler(&logged, nil))
	if s, err := file.Load(log); err != nil || !reflect.DeepEqual(s, purge.State{}) {
		t.Fatalf("no file: %+v, %v", s, err)
	}
	want := someState()
	if err := file.Save(want); err != nil {
		t.Fatal(err)
	}
	if got, err := file.Load(log); err != nil || !reflect.DeepEqual(got, want) || logged.Len() > 0 {
		t.Fatalf("got %+v, %v, want %+v; %s", got, err, want, &logged)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(good, []byte("why"), []byte("who"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := file.Load(log)
	if err != nil || len(got.Tombstones) != 1 || !strings.Contains(logged.String(), "lines=1") {
		t.Errorf("damaged: %+v, %v; %s", got, err, &logged)
	}
	if _, err := os.Stat(path + ".damaged"); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte("ringmod tombstones 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := file.Load(log); err == nil {
		t.Error("a file of a newer version is read")
	}
}

// What comes from the future was made now, by a clock that was set back.
func TestFileFromTheFuture(t *testing.T) {
	t.Parallel()
	file := purge.File(filepath.Join(t.TempDir(), "tombstones"))
	s := someState()
	s.Tombstones[0].Made, s.Heard = time.Now().AddDate(1, 0, 0), time.Now().AddDate(1, 0, 0)
	if err := file.Save(s); err != nil {
		t.Fatal(err)
	}
	got, err := file.Load(slog.New(slog.DiscardHandler))
	if now := time.Now(); err != nil || got.Tombstones[0].Made.After(now) || got.Heard.After(now) {
		t.Errorf("got %+v, %v", got, err)
	}
}

// FuzzDecodeState reads any file: nothing panics, and what is read can be written and read
// again.
func FuzzDecodeState(f *testing.F) {
	f.Add(encode(f, someState()))
	f.Add([]byte("ringmod tombstones 1\n00000000 {}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, _, err := purge.DecodeState(b)
		if err != nil {
			return
		}
		again, damaged, err := purge.DecodeState(encode(t, s))
		if err != nil || damaged != 0 || len(again.Tombstones) != len(s.Tombstones) {
			t.Errorf("%d damaged, %v\ngot  %+v\nwant %+v", damaged, err, again, s)
		}
		purge.Restore(s).Purged("a.b/c/@v/list")
	})
}
