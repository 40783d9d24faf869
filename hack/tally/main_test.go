package main

import (
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   []string
		want counts
		out  []string // parts of what is printed
		not  string   // must not be printed
	}{
		{"passed is silent", []string{
			`{"Action":"output","Package":"p","Test":"TestA","Output":"chatter\n"}`,
			`{"Action":"pass","Package":"p","Test":"TestA"}`,
			`{"Action":"skip","Package":"p","Test":"TestB"}`,
			`{"Action":"pass","Package":"p","Elapsed":1.25}`,
		}, counts{Passed: 1, Skipped: 1}, []string{"pass p 1.2s"}, "chatter"},
		{"failed is shown", []string{
			`{"Action":"output","Package":"p","Test":"TestA","Output":"why\n"}`,
			`{"Action":"fail","Package":"p","Test":"TestA"}`,
			`{"Action":"output","Package":"p","Output":"FAIL\n"}`,
			`{"Action":"fail","Package":"p"}`,
		}, counts{Failed: 1}, []string{"--- FAILED p TestA", "why", "fail p"}, "FAIL\n"},
		{"does not compile", []string{
			`{"ImportPath":"p","Action":"build-output","Output":"x.go:1: no\n"}`,
			`{"ImportPath":"p","Action":"build-fail"}`,
			`{"Action":"output","Package":"p","Output":"FAIL p [build failed]\n"}`,
			`{"Action":"fail","Package":"p","FailedBuild":"p"}`,
		}, counts{Failed: 1}, []string{"x.go:1: no", "[build failed]"}, "\x00"},
		{"ends in the middle of a test", []string{
			`{"Action":"output","Package":"p","Test":"TestA","Output":"panic: oh\n"}`,
			`{"Action":"fail","Package":"p","Test":"TestA"}`,
			`{"Action":"fail","Package":"p"}`,
		}, counts{Failed: 1}, []string{"panic: oh"}, "\x00"},
		{"ends without a word", []string{
			`{"Action":"output","Package":"p","Test":"TestA","Output":"panic: oh\n"}`,
		}, counts{Failed: 1}, []string{"--- NEVER ENDED p TestA", "panic: oh"}, "\x00"},
		{"a panic outside of the test", []string{
			`{"Action":"output","Package":"p","Test":"TestA","Output":"panic: oh\n"}`,
			`{"Action":"fail","Package":"p"}`,
		}, counts{Failed: 1}, []string{"--- NEVER ENDED p TestA", "panic: oh", "fail p"}, "\x00"},
		{"late words", []string{
			`{"Action":"pass","Package":"p","Test":"TestA"}`,
			`{"Action":"output","Package":"p","Test":"TestA","Output":"bye\n"}`,
			`{"Action":"pass","Package":"p"}`,
		}, counts{Passed: 1}, nil, "bye"},
		{"other text", []string{`go: no such package`}, counts{}, []string{"go: no such package"}, "\x00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			got, err := read(strings.NewReader(strings.Join(tt.in, "\n")+"\n"), &out)
			if err != nil || got != tt.want {
				t.Errorf("read = %v, %v, want %v", got, err, tt.want)
			}
			for _, part := range tt.out {
				if !strings.Contains(out.String(), part) {
					t.Errorf("read printed %q, want %q in it", out.String(), part)
				}
			}
			if strings.Contains(out.String(), tt.not) {
				t.Errorf("read printed %q, want no %q", out.String(), tt.not)
			}
		})
	}
	for c, ok := range map[counts]bool{{}: false, {Passed: 1}: true, {Passed: 1, Failed: 1}: false, {Skipped: 1}: false} {
		if (c.verdict() == nil) != ok {
			t.Errorf("verdict of %v = %v, want error: %v", c, c.verdict(), !ok)
		}
	}
}
