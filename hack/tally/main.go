// tally reads `go test -json` and says it in few words: one line for each
// package, all output of what failed, and the numbers.
//
//	go test -json ./... | tally -tier unit -into FILE
//	tally -sum FILE...
//
// With -into the numbers are also written to FILE; -sum adds up such files and
// prints the line "N passed, N failed, N skipped", which CI reads. The exit code
// is 1 when anything failed or nothing ran.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

func main() {
	tier := flag.String("tier", "", "name of this run, for the summary")
	into := flag.String("into", "", "file that the numbers are written to")
	sum := flag.Bool("sum", false, "add up the files named")
	flag.Parse()
	if err := run(*tier, *into, *sum, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "tally:", err)
		os.Exit(1)
	}
}

func run(tier, into string, sum bool, files []string) error {
	if sum {
		return addUp(files)
	}
	c, err := read(os.Stdin, os.Stdout)
	if err != nil {
		return err
	}
	fmt.Printf("== %s: %v\n", tier, c)
	if into != "" {
		b, err := json.Marshal(c)
		if err != nil {
			return err
		}
		if err := os.WriteFile(into, b, 0o644); err != nil {
			return err
		}
	}
	return c.verdict()
}

func addUp(files []string) error {
	var all counts
	for _, f := range files {
		var c counts
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(b, &c); err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		all.Passed += c.Passed
		all.Failed += c.Failed
		all.Skipped += c.Skipped
	}
	fmt.Println(all)
	return all.verdict()
}

// counts is of tests with their subtests; a package that fails by itself, say
// because it does not compile, counts as one that failed.
type counts struct{ Passed, Failed, Skipped int }

func (c counts) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", c.Passed, c.Failed, c.Skipped)
}

func (c counts) verdict() error {
	switch {
	case c.Failed > 0:
		return errors.New("there were failures")
	case c.Passed == 0:
		return errors.New("no test ran")
	}
	return nil
}

// event is one line of `go test -json`.
type event struct {
	Action, Package, ImportPath, Test, Output string
	Elapsed                                   float64
}

// read copies what matters to out.
func read(in io.Reader, out io.Writer) (counts, error) {
	var c counts
	output := map[string]*strings.Builder{} // by package and test, of those that have not ended
	failed := map[string]bool{}             // packages with a failed test
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil || e.Action == "" {
				_, _ = out.Write(line) // not ours: the go command's own words
			} else {
				c.take(e, output, failed, out)
			}
		}
		if errors.Is(err, io.EOF) {
			// A program that panics or is killed says nothing at its end; the
			// go command says it for it, others may forget.
			c.Failed += len(unended("", output, out))
			return c, nil
		}
		if err != nil {
			return c, err
		}
	}
}

// unended prints what has begun in pkg, or in any package if that is "", and has
// no result. It returns the packages.
func unended(pkg string, output map[string]*strings.Builder, out io.Writer) (packages []string) {
	for _, key := range slices.Sorted(maps.Keys(output)) {
		name, test, _ := strings.Cut(key, "\x00")
		if pkg != "" && name != pkg {
			continue
		}
		fmt.Fprintf(out, "--- NEVER ENDED %s %s\n%s", name, test, output[key])
		packages = append(packages, name)
	}
	return slices.Compact(packages)
}

func (c *counts) take(e event, output map[string]*strings.Builder, failed map[string]bool, out io.Writer) {
	key := e.Package + "\x00" + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(out, e.Output)
	case "output":
		b := output[key]
		if b == nil {
			b = &strings.Builder{}
			output[key] = b
		}
		b.WriteString(e.Output)
	case "pass", "fail", "skip":
		if e.Action == "fail" && output[key] != nil && (e.Test != "" || !failed[e.Package]) {
			fmt.Fprintf(out, "--- FAILED %s %s\n%s", e.Package, e.Test, output[key])
		}
		delete(output, key)
		if e.Test == "" {
			if e.Action == "fail" && !failed[e.Package] {
				c.Failed++
				unended(e.Package, output, out)
			}
			// Late words of tests that have ended are of no interest.
			maps.DeleteFunc(output, func(key string, _ *strings.Builder) bool { return strings.HasPrefix(key, e.Package+"\x00") })
			if e.Action != "skip" { // no test files
				fmt.Fprintf(out, "%-4s %s %.1fs\n", e.Action, e.Package, e.Elapsed)
			}
			return
		}
		switch e.Action {
		case "pass":
			c.Passed++
		case "fail":
			c.Failed++
			failed[e.Package] = true
		case "skip":
			c.Skipped++
		}
	}
}
