package server

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cridproject/crid/monitor"
)

func TestJournal(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	j, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 1, 2, 3, 4, 5, time.UTC)
	later := monitor.Exit{ID: "a", Code: 1, At: at.Add(time.Second)}
	first := monitor.Exit{ID: "b", Code: 137, At: at, OOMKilled: true}
	for _, e := range []monitor.Exit{later, first, {ID: "c", At: at}} {
		if err := j.put(e); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := j.remove("c"); err != nil {
			t.Error(err)
		}
	}
	for name, j := range map[string]*journal{"same": j, "opened again": reopenJournal(t, dir)} {
		got := j.all()
		if len(got) != 2 || got[0] != first || got[1] != later {
			t.Errorf("%s: all = %+v, want %+v, %+v", name, got, first, later)
		}
	}

	// What is damaged is said and does not hide the rest.
	for name, text := range map[string]string{"d.json": "{", "e.json": `{"ID":"x"}`, ".tmp-f.json-1": "{", "../g.json": "{"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	j, err = openJournal(dir)
	if err == nil || len(j.all()) != 2 {
		t.Errorf("damaged journal = %+v, %v, want two exits and an error", j.all(), err)
	}
	if _, err := os.Stat(filepath.Join(dir, ".tmp-f.json-1")); err == nil {
		t.Error("the file of a write that was cut short is still there")
	}
}

func reopenJournal(t *testing.T, dir string) *journal {
	t.Helper()
	j, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	return j
}
