// What the page uses of its vendored modules, for `make check` alone: no browser asks for it.

declare module "preact" {
  export function h(type: unknown, props: object | null, ...children: unknown[]): object;
  export function render(element: unknown, parent: Element): void;
}

declare module "preact/hooks" {
  type Update<T> = (value: T | ((old: T) => T)) => void;
  export function useState<T = any>(initial?: T | (() => T)): [T, Update<T>];
  export function useEffect(run: () => void | (() => void), inputs?: readonly unknown[]): void;
  export function useLayoutEffect(run: () => void | (() => void), inputs?: readonly unknown[]): void;
  export function useMemo<T>(make: () => T, inputs: readonly unknown[]): T;
  export function useRef<T = any>(initial?: T): { current: T };
  export function useId(): string;
}

declare module "htm" {
  const htm: { bind(h: Function): (strings: TemplateStringsArray, ...values: unknown[]) => any };
  export default htm;
}

declare module "eventsource-parser" {
  export function createParser(options: { onEvent(event: { data: string }): void }): { feed(text: string): void };
}

declare module "uplot" {
  const uPlot: any;
  export default uPlot;
}
