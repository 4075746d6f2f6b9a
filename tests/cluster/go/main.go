// Program cluster is a whole control plane in one file: etcd, kube-apiserver,
// kube-controller-manager and kubectl, chosen by the first argument or, through
// a link, by the name it was started under. One program because its parts share
// nearly all of their code: four would take four times as long to link.
//
// Beside them are the files and the kubelet that a test cluster needs (pki.go,
// kubelet.go), and answers that only Kubernetes' own code can give for certain:
// what a request line means (requestinfo.go), what a whole request means
// (meaning.go) and how an object is encoded (encode.go).
package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/etcd/server/v3/etcdmain"
	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

// Each program reads os.Args, in which the chosen name has become element 0.
var programs = map[string]func(){
	"etcd":                    func() { etcdmain.Main(os.Args) },
	"kube-apiserver":          func() { os.Exit(cli.Run(apiserver.NewAPIServerCommand())) },
	"kube-controller-manager": func() { os.Exit(cli.Run(controllers.NewControllerManagerCommand())) },
	"kubectl":                 kubectl,
	"kubelet":                 kubelet,
	"pki":                     pki,
	"requestinfo":             func() { answer(requestInfo) },
	"meaning":                 func() { answer(meaning) },
	"encode":                  func() { answer(encode) },
}

func main() {
	name := filepath.Base(os.Args[0])
	if _, known := programs[name]; !known {
		if len(os.Args) > 1 && os.Args[1] == "until-eof" {
			exitAtEOF()
			os.Args = os.Args[1:]
		}
		if len(os.Args) > 1 {
			name = os.Args[1]
			os.Args = os.Args[1:]
		}
	}
	program, known := programs[name]
	if !known {
		names := strings.Join(slices.Sorted(maps.Keys(programs)), ", ")
		fmt.Fprintf(os.Stderr, "cluster: no program %q; there are %s\n", name, names)
		os.Exit(2)
	}
	program()
}

// kubectl is upstream's main.
func kubectl() {
	_, _ = logs.GlogSetter(cmd.GetLogVerbosity(os.Args))
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "cluster:", err)
	os.Exit(1)
}
