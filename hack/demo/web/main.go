// Web is all of the demo's image: a web server, and under other names a few
// small commands to run beside it.
package main

import (
	"cmp"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Commands is also the list of links in the image, see hack/demo.
var commands = map[string]func(args []string) error{
	"web": web, "hostname": hostname, "ls": ls, "cat": cat, "env": env, "ps": ps, "id": id,
}

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	run, ok := commands[name]
	if !ok {
		run = web
	}
	if err := run(args); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

// web serves one page and logs each request.
func web([]string) error {
	const addr = ":8080"
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		log.Printf("%s %s from %s", r.Method, r.URL.Path, from)
		fmt.Fprintf(w, "Hello from pod %s. You are %s.\n", host, from)
	})
	log.SetOutput(os.Stdout)
	log.Printf("serving on %s", addr)
	s := http.Server{Addr: addr, ReadHeaderTimeout: 5 * time.Second}
	return s.ListenAndServe()
}

func hostname([]string) error {
	name, err := os.Hostname()
	fmt.Println(name)
	return err
}

func ls(args []string) error {
	if len(args) == 0 {
		args = []string{"."}
	}
	for _, dir := range args {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			fmt.Println(e.Name())
		}
	}
	return nil
}

func cat(args []string) error {
	for _, path := range args {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		_, err = io.Copy(os.Stdout, f)
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func env([]string) error {
	fmt.Println(strings.Join(os.Environ(), "\n"))
	return nil
}

func id([]string) error {
	groups, err := os.Getgroups()
	fmt.Printf("uid=%d gid=%d groups=%v\n", os.Getuid(), os.Getgid(), groups)
	return err
}

// ps shows the processes of this PID namespace.
func ps([]string) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	slices.SortFunc(dirs, func(a, b string) int { // by number
		return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
	})
	fmt.Println("PID\tCOMMAND")
	for _, dir := range dirs {
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err == nil {
			fmt.Printf("%s\t%s\n", filepath.Base(dir), strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " ")))
		}
	}
	return nil
}
