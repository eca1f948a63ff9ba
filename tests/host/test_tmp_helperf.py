import sys; sys.path.insert(0,'/work/main/tests/host')
import pytest, torch
from types import SimpleNamespace
import tiny, comfy.k_diffusion.sampling, comfy.k_diffusion.sa_solver
from comfyui_distillery.samplers.solvers import SOLVERS
from tests.problems import *
def test_it():
    patcher=tiny.build("flow")[0]
    for prob in (gaussian,mixture):
        class M:
            problem=prob(FLOW); inner_model=SimpleNamespace(model_patcher=patcher)
            def __call__(self,x,s): return self.problem(x,s)
        m=M()
        for shift in (1.0,3.0):
          for n in (6,10,20,40):
            s=torch.linspace(1,0,n+1,dtype=torch.float64); s=shift*s/(1+(shift-1)*s)
            x=m.problem.start(s[0],batch=64); ex=m.problem.exact(x,s[0],number(0.0) if prob is gaussian else s[-1]) if prob is gaussian else m.problem.exact(x,s[0],number(1e-6))
            c=comfy.k_diffusion.sampling.sample_sa_solver(m,x,s,disable=True,tau_func=lambda q:0.0)
            o=SOLVERS["sa_solver"](m,x,s,path=FLOW,tau=0.0)
            o2=SOLVERS["sa_solver"](m,x,s,path=FLOW,tau=0.0,corrector_order=0)
            e=SOLVERS["ghvb"](m,x,s,order=1.0)
            f=lambda r: float((r-ex).square().mean().sqrt())
            print(prob.__name__,shift,n,"core %.4f ours %.4f ours-nocorr %.4f euler %.4f"%(f(c),f(o),f(o2),f(e)))
